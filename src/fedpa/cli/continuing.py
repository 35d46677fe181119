"""Runs that go on with later data, and runs that go back to an earlier round."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedpa.cli.options import (
    Json,
    MovedDataset,
    MovedFoundation,
    Overwrite,
    RunArgument,
    example,
    open_run,
    options_given,
    settings_of,
    watched,
)
from fedpa.cli.show import show
from fedpa.errors import ConfigError

if TYPE_CHECKING:
    from fedpa.run import Run

__all__ = ["continued", "verbs"]

verbs = typer.Typer()
_OF_THE_RUN = ("method", "preset", "seed")
_PASSED_ON = (
    "driver", "shards", "address", "deadline", "threads", "device", "keep_rounds", "metrics_file", "metrics_port",
    "overwrite",
)  # fmt: skip


def continued(
    context: typer.Context,
    run: Path,
    first: str | None,
    second: Path | None,
    out: Path | None,
    *,
    migrate: bool,
    assignments: list[str] | None,
) -> Run:
    """What ``fedpa adapt --continue RUN [FOUNDATION] DATASET`` does.

    Of the verb's other options, those that were given are passed on; what belongs to the run is refused.
    """
    from fedpa.continuing.run import continue_run
    from fedpa.data.dataset import load_dataset
    from fedpa.models.wrap.source import open_foundation

    foundation, dataset = (None, first) if second is None else (first, second)
    if dataset is None or out is None:
        raise ConfigError("expected --continue RUN DATASET --out RUN2", "see fedpa adapt --help")
    named = options_given(context)
    given = {name: value for name, value in context.params.items() if name in named and name in _PASSED_ON}
    for name in _OF_THE_RUN:
        if name in named:
            raise ConfigError(f"--{name}: {run} goes on with its own", "leave it out")
    settings = settings_of(continue_run, assignments)
    return continue_run(
        open_run(run, None, None),
        load_dataset(dataset),
        out=out,
        foundation=None if foundation is None else open_foundation(foundation),
        foundation_path=foundation,
        migrate=migrate,
        progress=watched(),
        **given,
        **settings,
    )


@verbs.command(epilog=example("fedpa rollback run --round 12 --out earlier"))
def rollback(
    run: RunArgument,
    number: Annotated[int, typer.Option("--round", metavar="N", help="One that the run keeps.")],
    out: Annotated[Path, typer.Option("--out", metavar="RUN2", help="Folder to write.")],
    dataset: MovedDataset = None,
    foundation: MovedFoundation = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write a run as it was after an earlier round; a run keeps its last two and its best, or --keep-rounds of them."""
    from fedpa.continuing.rollback import rollback as rolled_back

    earlier = rolled_back(open_run(run, dataset, foundation), number, out=out, overwrite=overwrite)
    show({"run": str(out), **earlier.summary}, as_json)
