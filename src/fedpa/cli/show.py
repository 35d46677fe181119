"""How results are printed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from fedpa.models.foundation import Foundation

__all__ = ["ranked", "show", "show_foundation", "show_rich", "show_table"]


def show(content: Mapping[str, Any], as_json: bool) -> None:
    """Print a result, as JSON or as indented text."""
    if as_json:
        typer.echo(json.dumps(content, allow_nan=False))
        return
    import yaml

    plain = json.loads(json.dumps(content))
    typer.echo(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=120).rstrip())


def show_foundation(foundation: Foundation, out: Path, as_json: bool) -> None:
    """Print what is known of a foundation that was just written."""
    show({"foundation": str(out), "hash": foundation.hash, **foundation.facts}, as_json)


def show_table(reports: Mapping[str, Mapping[str, Any]], title: str) -> None:
    """Print reports side by side, one row each."""
    from fedpa.evaluation.report import comparison_table

    show_rich(comparison_table([{"name": name, **report} for name, report in reports.items()], title))


def ranked(items: list[Any], columns: Mapping[str, list[float]]) -> Table:
    """Items by rank, with a column for each list of values."""
    from rich.table import Table

    table = Table()
    for name in ("rank", "item", *columns):
        table.add_column(name, justify="right")
    for place, item in enumerate(items):
        table.add_row(str(place + 1), str(item), *(f"{values[place]:.4f}" for values in columns.values()))
    return table


def show_rich(table: Table) -> None:
    """Print a table as wide as the terminal, or wide enough where there is none."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console.width = 160
    console.print(table)
