"""Verbs that train a foundation on open users."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fedpa.cli.options import DatasetArgument, Device, Json, Overwrite, Seed, Set, example, settings_of, watched
from fedpa.cli.show import show_foundation
from fedpa.errors import ConfigError

__all__ = ["verbs"]

verbs = typer.Typer()


@verbs.command(epilog=example("fedpa pretrain dataset --out foundation --set epochs=20"))
def pretrain(
    dataset: DatasetArgument,
    out: Annotated[Path, typer.Option("--out", metavar="FOUNDATION", help="Folder to write.")],
    set_: Set = None,
    device: Device = "cpu",
    seed: Seed = 0,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Train a foundation on the open users of a data set."""
    from fedpa.data.dataset import load_dataset
    from fedpa.models.pretrain import pretrain as pretrained

    settings = settings_of(pretrained, set_)
    foundation = pretrained(
        load_dataset(dataset),
        out=out,
        seed=seed,
        device=device,
        overwrite=overwrite,
        progress=watched(),
        **settings,
    )
    show_foundation(foundation, out, as_json)


@verbs.command(
    epilog=example(
        "fedpa distill foundation dataset --to examples/student.yaml --out student",
        "fedpa distill foundation dataset --to examples/student.yaml --set mixing=0.7 --out student",
    )
)
def distill(
    foundation: Annotated[Path, typer.Argument(metavar="FOUNDATION", help="Folder that `fedpa pretrain` wrote.")],
    dataset: DatasetArgument,
    to: Annotated[Path, typer.Option("--to", metavar="CONFIG", help="YAML file of the student's settings.")],
    out: Annotated[Path, typer.Option("--out", metavar="STUDENT", help="Folder to write.")],
    set_: Set = None,
    device: Device = "cpu",
    seed: Seed = 0,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Train a smaller foundation on open users' clicks and on what a larger one says of them."""
    from fedpa.data.dataset import load_dataset
    from fedpa.models.distill import distill as distilled
    from fedpa.models.foundation import load_foundation

    settings = {**_settings(to), **settings_of(distilled, set_)}
    student = distilled(
        load_foundation(foundation),
        load_dataset(dataset),
        out=out,
        seed=seed,
        device=device,
        overwrite=overwrite,
        progress=watched(),
        **settings,
    )
    show_foundation(student, out, as_json)


def _settings(path: Path) -> dict[str, Any]:
    """The settings of a YAML file."""
    import yaml

    from fedpa.models.distill import DistillSettings

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(
            f"{path}: cannot be read ({error})", "give a YAML file of settings, one `key: value` a line"
        ) from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected settings, found {content!r}", "write one `key: value` a line")
    DistillSettings.checked(content, str(path))
    return content
