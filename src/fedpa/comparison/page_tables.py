"""The tables of the page of a comparison."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import Any

from fedpa.comparison.columns import FAMILIES, NONE, TASKS, by_numbers, columns, metric_title, number
from fedpa.comparison.plots import mark_svg
from fedpa.comparison.results import Results, Row, TaskResults

__all__ = ["Parts", "cold_table", "main_table", "numbers_by_round", "numbers_of_parts", "settings_list"]

Parts = Callable[[Row], Mapping[str, Mapping[str, Any]]]
"""Where a row keeps its metrics of parts of the users, by the name of the part."""


def _scroll(caption: str, content: Iterable[str]) -> Iterator[str]:
    """A table in a box of its own that scrolls sideways."""
    yield f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table>'
    yield from content
    yield "</table></div>"


def main_table(results: Results, task: TaskResults) -> Iterator[str]:
    """All methods of a task, with the first column always in sight."""
    yield from _scroll(f"{TASKS[task.task]}: all methods", _table_rows(results, task))


def _table_rows(results: Results, task: TaskResults) -> Iterator[str]:
    shown = columns(task, task.reference)
    yield '<thead><tr><th class="first" scope="col">method</th>'
    for column in shown:
        yield f'<th scope="col"{_left(column.is_text)}>{escape(column.title)}</th>'
    yield "</tr></thead>"
    before = None
    for i, row in enumerate(task.rows, 1):
        if row.family != before:
            yield f'{"" if before is None else "</tbody>"}<tbody><tr class="family f-{row.family} m"><th class="first" '
            yield f'scope="rowgroup">{escape(FAMILIES[row.family])}</th><td colspan="{len(shown)}"></td></tr>'
            before = row.family
        yield f'<tr class="m f-{row.family}" data-m="{i}"><th class="first" scope="row"><span class="n">{i}</span>'
        yield f"{mark_svg(row.family)} {escape(row.title)}</th>"
        if row.error is not None:
            yield f'<td class="error" colspan="{len(shown)}">failed: {escape(row.error)}</td></tr>'
            continue
        for column in shown:
            yield f"<td{_left(column.is_text)}>{_cell(column.text(row), results.level)}</td>"
        yield "</tr>"
    yield "" if before is None else "</tbody>"


def _left(is_text: bool) -> str:
    return ' class="t"' if is_text else ""


def _cell(text: str, level: float) -> str:
    """Text with its interval and p-value on a second line."""
    value, bracket, rest = text.partition(" [")
    if not bracket:
        return escape(text)
    interval, _, p = rest.partition("] p ")
    found = f"{escape(value)}<small>[{escape(interval.removesuffix(']'))}]"
    if p:
        low = p.startswith("<") or (p != NONE and float(p) <= 1 - level)
        found += f' <span class="{"p-low" if low else "p"}">p {escape(p)}</span>'
    return found + "</small>"


def _plain_table(caption: str, header: Sequence[str], lines: Iterable[tuple[Row, Sequence[str]]]) -> str:
    def content() -> Iterator[str]:
        yield '<thead><tr><th class="first" scope="col">method</th>'
        yield "".join(f'<th scope="col">{escape(text)}</th>' for text in header) + "</tr></thead><tbody>"
        for row, texts in lines:
            yield f'<tr><th class="first" scope="row">{escape(row.title)}</th>'
            yield "".join(f"<td>{escape(text)}</td>" for text in texts) + "</tr>"
        yield "</tbody>"

    return "".join(_scroll(caption, content()))


def numbers_by_round(task: TaskResults, metric: str) -> str:
    """The numbers of the figure by round."""
    rows = [row for row in task.rows if row.by_round]
    rounds = sorted({one.round for row in rows for one in row.by_round})
    lines = []
    for row in rows:
        found = {one.round: one.metrics.get(metric) for one in row.by_round}
        lines.append((row, [number(found.get(at)) for at in rounds]))
    return _plain_table(f"{metric_title(metric)} by round", [str(at) for at in rounds], lines)


def numbers_of_parts(task: TaskResults, metric: str, axis: str, parts: Parts) -> str:
    """The numbers of a figure of parts of the users."""
    rows = [row for row in task.measured if parts(row)]
    users: dict[str, Any] = {}
    for row in rows:
        for name, part in parts(row).items():
            users.setdefault(name, part.get("users"))
    users = {name: users[name] for name in sorted(users, key=by_numbers)}
    header = [name if count is None else f"{name} ({count:,} users)" for name, count in users.items()]
    lines = [(row, [number(parts(row).get(name, {}).get(metric)) for name in users]) for row in rows]
    return _plain_table(f"{metric_title(metric)} by {axis}", header, lines)


def cold_table(task: TaskResults) -> Iterator[str]:
    """Users who took part in no round, by the rows they are known from."""
    rows = [row for row in task.measured if row.cold and "error" not in row.cold]
    names = dict.fromkeys(name for row in rows for name, part in (row.cold or {}).items() if isinstance(part, dict))
    if not names:
        return
    yield "<h3>Users who took part in no round</h3>"
    yield '<p class="soft">Scored on the same later rows with 0 to 5 rows of their own; means over seeds.</p>'
    shown = [(name, metric) for name in names for metric in task.metrics[:2]]
    header = [f"{metric_title(metric)}, {name.replace('_', ' ')}" for name, metric in shown]
    lines = [(row, [number((row.cold or {}).get(name, {}).get(metric)) for name, metric in shown]) for row in rows]
    yield _plain_table("Users who took part in no round", header, lines)


def settings_list(task: TaskResults) -> Iterator[str]:
    """What every method was run with."""
    rows = [row for row in task.measured if row.settings or row.parameters]
    if not rows:
        return
    yield "<h3>Settings</h3><details><summary>Settings and numbers of parameters of every method</summary><ul>"
    for row in rows:
        scopes = ", ".join(f"{count:,} {scope}" for scope, count in row.parameters.items())
        settings = json.dumps(row.settings, sort_keys=True)
        yield f"<li>{escape(row.title)} (<code>{escape(row.method)}</code>, {row.settings_from}): "
        yield f"<code>{escape(settings)}</code>{escape('; parameters: ' + scopes if scopes else '')}</li>"
    yield "</ul></details>"
