"""The verb that shows all others at work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedpa.cli.options import Json, Seed, example
from fedpa.cli.show import show, show_table

__all__ = ["verbs"]

verbs = typer.Typer()


@verbs.command(epilog=example("fedpa demo", "fedpa demo --dir elsewhere --users 1000"))
def demo(
    out: Annotated[Path, typer.Option("--dir", help="Folder to write; an earlier demo is overwritten.")] = Path(
        "fedpa-demo"
    ),
    users: Annotated[int, typer.Option("--users", help="Number of synthetic users.")] = 2500,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Go the whole path on synthetic users, from raw tables to recommendations."""
    from fedpa.demo import demo as demonstrated

    result = demonstrated(out, users=users, seed=seed, progress=lambda line: typer.echo(line, err=True))
    if as_json:
        show(result, as_json)
        return
    recommended = result["recommendation"]
    typer.echo(f"for user {recommended['user']}: items {', '.join(map(str, recommended['items']))}")
    show_table(result["yardsticks"], "test rows of private users")
    typer.echo(f"uploaded per user and round: {result['bytes_up_per_user_round']:,.0f} bytes")
