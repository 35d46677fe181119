"""Verbs that prepare what Flower's own commands take."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from fedpa.cli.options import STYLE, Json, Overwrite, Seed, example
from fedpa.cli.show import show
from fedpa.errors import ConfigError

__all__ = ["flower_verbs"]

flower_verbs = typer.Typer(**STYLE)


@flower_verbs.command(epilog=example("fedpa flower keys keys --nodes 2 --host server.example.org"))
def keys(
    out: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write.")],
    nodes: Annotated[int, typer.Option("--nodes", help="Number of nodes.")],
    host: Annotated[
        list[str] | None,
        typer.Option(
            "--host", help="Name or address of the SuperLink, beside 127.0.0.1 and localhost; may be repeated."
        ),
    ] = None,
    days: Annotated[int, typer.Option("--days", help="For how long the certificates are good.")] = 365,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Make a CA, the SuperLink's certificate and a key per node; each private key belongs on its machine alone."""
    _needs_flower()
    from fedpa.drivers.flower.keys import make_keys

    hosts = dict.fromkeys([*(host or []), "127.0.0.1", "localhost"])
    files = make_keys(out, nodes=nodes, hosts=list(hosts), days=days, overwrite=overwrite)
    show({"keys": str(out), "files": list(files)}, as_json)


@flower_verbs.command(
    epilog=example(
        "fedpa flower new app --dataset shards/server --foundation foundation --out run --min-nodes 2 --ca keys/ca.crt",
    )
)
def new(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write, for `flwr run DIR`.")],
    dataset: Annotated[Path, typer.Option("--dataset", metavar="DATASET", help="The server's: SHARDS/server.")],
    out: Annotated[Path, typer.Option("--out", metavar="RUN", help="Folder that the run will write.")],
    foundation: Annotated[
        str, typer.Option("--foundation", metavar="FOUNDATION", help="Folder, or my_file.py:build; - for none.")
    ] = "-",
    earlier: Annotated[
        Path | None,
        typer.Option("--continue", metavar="RUN", help="Go on from a finished run of Flower, with later data."),
    ] = None,
    migrate: Annotated[
        bool, typer.Option("--migrate", help="With --continue: take over what still fits a new foundation or settings.")
    ] = False,
    method: Annotated[str, typer.Option("--method", help="See `fedpa methods`.")] = "fedpa",
    preset: Annotated[str, typer.Option("--preset", help="Named settings of the method.")] = "default",
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting; may be repeated.")
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", help="Most rounds; 0: the preset's.")] = 0,
    min_nodes: Annotated[int, typer.Option("--min-nodes", help="Nodes without which no round begins.")] = 1,
    deadline: Annotated[
        float, typer.Option("--deadline", help="Seconds after which a round goes on without a node.")
    ] = 600.0,
    superlink: Annotated[str, typer.Option("--superlink", help="Where the SuperLink is.")] = "127.0.0.1:8000",
    ca: Annotated[
        Path | None, typer.Option("--ca", metavar="FILE", help="Certificate of the CA that signed the SuperLink's.")
    ] = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write what `flwr run` takes: the apps, the options of the run, and where the SuperLink is."""
    _needs_flower()
    from fedpa.drivers.flower.project import new_project

    options: dict[str, Any] = {
        "dataset": str(dataset),
        "foundation": "" if foundation == "-" else foundation,
        "out": str(out),
        "continue": "" if earlier is None else str(earlier),
        "migrate": migrate,
        "method": method,
        "preset": preset,
        "settings": shlex.join(set_ or []),
        "rounds": rounds,
        "seed": seed,
        "min-nodes": min_nodes,
        "deadline": deadline,
    }
    new_project(folder, options, superlink=superlink, ca=ca, overwrite=overwrite)
    show({"app": str(folder), "export": f"FLWR_HOME={folder.resolve()}/.flwr", "run": f"flwr run {folder}"}, as_json)


def _needs_flower() -> None:
    from importlib.util import find_spec

    if find_spec("flwr") is None:
        raise ConfigError("Flower is an extra that is not installed", "pip install 'fedpa[flower]'")
