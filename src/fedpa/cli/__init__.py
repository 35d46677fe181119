"""The command line: one function per verb, each a call of the package and a way to show what it returned."""

from __future__ import annotations

from typing import Annotated

import typer

from fedpa.cli import adaptation, continuing, data, demo, flower, pretraining, studies
from fedpa.cli.options import STYLE

__all__ = ["app", "main"]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, **STYLE)
app.add_typer(data.data_verbs, name="data", help="Make, fetch and describe data.")
# Without a name their verbs are verbs of `fedpa`, in this order.
for verbs in (data.verbs, pretraining.verbs, adaptation.verbs, continuing.verbs, studies.verbs, demo.verbs):
    app.add_typer(verbs)
app.add_typer(flower.flower_verbs, name="flower", help="Keys and options of a run on Flower's nodes.")


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"fedpa {version('fedpa')}")
        raise typer.Exit


@app.callback()
def _global(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Adapt a frozen recommender to private users whose interactions stay with them."""


def main() -> None:
    """Run the command line."""
    app()
