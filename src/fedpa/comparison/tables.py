"""Tables of a comparison, as Markdown and for the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.table import Table
from rich.text import Text

from fedpa.comparison.columns import (
    NONE,
    TASKS,
    bytes_text,
    columns,
    interval_text,
    metric_title,
    number,
    p_text,
    reading,
)
from fedpa.comparison.results import Results, Row, TaskResults

__all__ = ["markdown", "terminal_tables"]


def markdown(results: Results) -> str:
    """A table for each task, with how to read it and what failed."""
    data = results.dataset
    lines = [f"# Comparison on {_plain(data.name)}", ""]
    facts = {
        "data set": f"{data.name}, {data.hash[:12]}",
        "split": data.split,
        "features": data.features,
        "seeds": str(results.seeds),
        "draws": f"{results.draws:,}",
        "fedpa": results.fedpa,
    }
    lines += [f"- {name}: {_plain(value)}" for name, value in facts.items() if value]
    if results.command:
        lines += ["", f"    {results.command}"]
    for task in results.tasks:
        lines += ["", f"## {TASKS[task.task]}", ""]
        lines += _markdown_table(task)
        for paragraph in (*reading(results, task), *map(_plain, task.notes)):
            lines += ["", paragraph]
        for title, found in (("Failed", _failures(task)), ("Not run", task.left_out)):
            if found:
                lines += ["", f"{title}:", "", *(f"- {_plain(name)}: {_plain(why)}" for name, why in found.items())]
    return "\n".join(lines) + "\n"


def _markdown_table(task: TaskResults) -> Iterator[str]:
    shown = columns(task, task.reference[:1])
    yield _line(["method", *(column.title for column in shown)])
    yield _line(["---", *("---" if column.is_text else "---:" for column in shown)])
    for row in task.rows:
        texts = [NONE if row.error is not None and not column.is_text else column.text(row) for column in shown]
        yield _line([row.title if row.error is None else f"{row.title} (failed)", *texts])


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(_plain(cell).replace('|', chr(92) + '|') for cell in cells)} |"


def _plain(text: str) -> str:
    """Text on one line, with what Markdown would read as a tag made harmless."""
    return " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")


def _failures(task: TaskResults) -> dict[str, str]:
    return {row.title: row.error for row in task.rows if row.error is not None}


def terminal_tables(results: Results) -> list[Table]:
    """A table for each task that fits 120 columns; the rest is in the files."""
    return [_terminal_table(results, task) for task in results.tasks]


def _terminal_table(results: Results, task: TaskResults) -> Table:
    head, *others = task.metrics[:3]
    reference = task.reference[0] if task.reference else None
    caption = f"difference in {metric_title(head)} with its {results.level:.0%} interval; p: Holm, for all methods"
    table = Table(title=TASKS[task.task], caption=None if reference is None else caption, box=box.SIMPLE_HEAD)
    table.add_column("method", overflow="fold")
    for name in (head, *others):
        table.add_column(metric_title(name), justify="right", no_wrap=True)
    if reference is not None:
        table.add_column(Text(f"minus {task.titles.get(reference, reference)}"), justify="right", width=26)
        table.add_column("p", justify="right", no_wrap=True)
    table.add_column("up", justify="right", no_wrap=True)
    table.add_column("best", justify="right", no_wrap=True)
    for row in task.rows:
        table.add_row(Text(row.title), *_terminal_cells(row, (head, *others), reference))
    return table


def _terminal_cells(row: Row, metrics: tuple[str, ...], reference: str | None) -> Iterator[str]:
    if row.error is not None:
        yield "failed"
        return
    for name in metrics:
        measured = row.metrics.get(name)
        yield number(None if measured is None else measured.value)
    if reference is not None:
        difference = row.differences.get(reference, {}).get(metrics[0])
        yield interval_text(difference, "+")
        yield p_text(None if difference is None else difference.p_holm)
    yield bytes_text(row.bytes_up)
    best = sorted(value for value in row.best_rounds if value is not None)
    yield str(best[len(best) // 2]) if best else NONE
