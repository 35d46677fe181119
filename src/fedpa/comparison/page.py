"""The results of a comparison as one HTML page that needs nothing else: no network, no other file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape

from fedpa.comparison.columns import FAMILIES, NONE, TASKS, metric_title, reading
from fedpa.comparison.figures import Figure, along, bytes_figure, forest, lines_along_rounds
from fedpa.comparison.look import SCRIPT, STYLE
from fedpa.comparison.page_tables import (
    Parts,
    cold_table,
    main_table,
    numbers_by_round,
    numbers_of_parts,
    settings_list,
)
from fedpa.comparison.plots import mark_svg
from fedpa.comparison.results import Results, TaskResults

__all__ = ["page"]

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def page(results: Results) -> str:
    """The whole page.

    Parameters
    ----------
    results : Results

    Returns
    -------
    str
        HTML whose elements are all closed, so that it can also be read as XML after its first line.
    """
    title = f"Comparison on {results.dataset.name}"
    parts = [
        "<!DOCTYPE html>\n",
        f'<html lang="en" class="no-script"><head><meta charset="utf-8"/><title>{escape(title)}</title>',
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>',
        f'<meta http-equiv="Content-Security-Policy" content="{escape(_POLICY)}"/>',
        f"<style>{STYLE}</style></head><body><main>",
        f"<h1>{escape(title)}</h1>",
        *_what(results),
    ]
    for place, task in enumerate(results.tasks):
        parts += _task(results, task, f"t{place}")
    parts.append(f"</main><script>{SCRIPT}</script></body></html>\n")
    return "".join(parts)


def _what(results: Results) -> Iterator[str]:
    """What was compared, on what."""
    methods = len({row.method for task in results.tasks for row in task.rows})
    yield (
        f"<p>{methods} methods on the same users, rows and seeds: simple baselines, training on the device alone, "
        "federated recommenders and adapters around a frozen foundation model. Each was run with "
        f"{results.seeds} seeds; a seed has its own foundation.</p>"
    )
    data = results.dataset
    counts = ", ".join(f"{_count(value)} {name.replace('_', ' ')}" for name, value in data.counts.items())
    facts = {
        "Data set": f"{data.name} ({data.hash[:12]})",
        "Split": data.split,
        "Features": data.features,
        "Counts": counts,
        "Draws": f"{results.draws:,}",
        "Tuning": f"{results.trials} trials of each tuned method" if results.trials else "",
        "fedpa": results.fedpa,
        "Measured in": "" if results.seconds is None else _duration(results.seconds),
    }
    yield "<dl>"
    for name, value in facts.items():
        if value:
            yield f"<dt>{name}</dt><dd>{escape(value)}</dd>"
    if results.command:
        yield f"<dt>Command</dt><dd><code>{escape(results.command)}</code></dd>"
    yield "</dl>"
    if len(results.tasks) > 1:
        yield "<ul>"
        for place, task in enumerate(results.tasks):
            yield f'<li><a href="#t{place}">{TASKS[task.task]}</a></li>'
        yield "</ul>"


def _count(value: float | None) -> str:
    return NONE if value is None else f"{value:,}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def _task(results: Results, task: TaskResults, name: str) -> Iterator[str]:
    yield f'<section class="task" id="{name}" aria-labelledby="{name}-title">'
    yield f'<h2 id="{name}-title">{TASKS[task.task]}</h2>'
    over = [f"{value:,} {what}" for value, what in ((task.users, "users"), (task.test_rows, "test rows")) if value]
    if over:
        yield f'<p class="soft">Over {" and ".join(over)}.</p>'
    yield from _tools(task, name)
    first, *others = reading(results, task)
    yield f"<h3>How to read the numbers</h3><p>{escape(first)} {escape(others[0])}</p>"
    yield f"<details><summary>More</summary>{''.join(f'<p>{escape(text)}</p>' for text in others[1:])}</details>"
    yield "".join(f"<p>{escape(note)}</p>" for note in task.notes)
    yield "<h3>All methods</h3>"
    yield from main_table(results, task)
    for title, found in (("Failed", {r.title: r.error for r in task.rows if r.error}), ("Not run", task.left_out)):
        if found:
            lines = "".join(f"<li>{escape(who)}: {escape(str(why))}</li>" for who, why in found.items())
            yield f"<p>{title}:</p><ul>{lines}</ul>"
    yield from _figures(results, task)
    yield from cold_table(task)
    yield from settings_list(task)
    yield "</section>"


def _tools(task: TaskResults, name: str) -> Iterator[str]:
    """Which metric figures show, which families, and which method stands out."""
    yield f'<div class="bar-of-tools" role="group" aria-label="What {TASKS[task.task].lower()} shows">'
    if len(task.metrics) > 1:
        yield "<fieldset><legend>Figures of</legend>"
        for place, metric in enumerate(task.metrics[:2]):
            checked = ' checked="checked"' if not place else ""
            yield f'<label><input type="radio" name="{name}-metric" value="{escape(metric)}"{checked}/>'
            yield f"{escape(metric_title(metric))}</label>"
        yield "</fieldset>"
    yield "<fieldset><legend>Show</legend>"
    for family in _families(task):
        yield f'<label class="f-{family}"><input type="checkbox" data-family="{family}" checked="checked"/>'
        yield f"{mark_svg(family)}{escape(FAMILIES[family])}</label>"
    yield '</fieldset><label>Highlight <select><option value="">no method</option>'
    for i, row in enumerate(task.rows, 1):
        yield f'<option value="{i}">{i} {escape(row.title)}</option>'
    yield "</select></label></div>"


def _families(task: TaskResults) -> list[str]:
    return list(dict.fromkeys(row.family for row in task.rows))


def _figures(results: Results, task: TaskResults) -> Iterator[str]:
    metrics = task.metrics[:2]
    for reference in task.reference:
        found = [(metric, forest(task, metric, reference, results.level)) for metric in metrics]
        about = (
            "A filled mark: p, corrected for all methods, is at most "
            f"{1 - results.level:.2g}. A hollow one: the difference may be chance. An arrow: it goes on."
        )
        yield from _shown(f"Difference to {task.titles.get(reference, reference)}", found, about, task)
    about = (
        f"Bars are {results.level:.0%} intervals of the mean alone; they overlap because users differ, whatever the "
        "method. Methods of equal bytes stand a little apart, so that their bars can be told apart; exact bytes are in "
        "the table. Methods that upload nothing stand on the left. Touch a point or a name to see it alone."
    )
    found = [(metric, bytes_figure(task, metric, results.level)) for metric in metrics]
    yield from _shown("Quality against bytes", found, about, task, named=True)
    by_round = [(metric, lines_along_rounds(task, metric)) for metric in metrics]
    about = "Means over seeds. Round 0 is before training; a line ends where no seed went on."
    rounds = {metric: numbers_by_round(task, metric) for metric in metrics}
    yield from _shown("Quality by round", by_round, about, task, numbers=rounds, named=True)
    about = "Means over seeds without intervals: read the shape of a line, not which of two close ones is above."
    for title, axis, of, parts in _parts(task):
        found = [(metric, along(task, metric, of, axis, parts)) for metric in metrics]
        texts = {metric: numbers_of_parts(task, metric, axis, parts) for metric in metrics}
        yield from _shown(title, found, about, task, numbers=texts, named=True)


def _parts(task: TaskResults) -> Iterator[tuple[str, str, str, Parts]]:
    """Figures of parts of the users: heading, axis, rest of the figure's title, and where a row keeps them."""
    yield (
        "Quality by amount of history",
        "training rows of the user",
        "by training rows of the user",
        lambda row: row.by_history,
    )
    groups = dict.fromkeys(name for row in task.measured for name in row.by_group)
    for group in groups:
        yield (
            f"Quality by group: {group}",
            group,
            f"by {group}",
            lambda row, group=group: row.by_group.get(group, {}),  # type: ignore[misc]
        )


def _shown(
    heading: str,
    figures: Sequence[tuple[str, Figure | None]],
    about: str,
    task: TaskResults,
    *,
    numbers: Mapping[str, str] | None = None,
    named: bool = False,
) -> Iterator[str]:
    """A heading and its figures, one for each metric; nothing where there is none."""
    drawn = [(metric, figure) for metric, figure in figures if figure is not None]
    if not drawn:
        return
    yield f"<h3>{escape(heading)}</h3>"
    for metric, figure in drawn:
        yield f'<figure data-metric="{escape(metric)}"><figcaption><strong>{escape(figure.title)}.</strong> '
        yield f"{escape(about)}</figcaption>{figure.wide}{figure.phone}"
        if named:
            yield from _names(task)
        if numbers and numbers.get(metric):
            yield f"<details><summary>The numbers</summary>{numbers[metric]}</details>"
        yield "</figure>"


def _names(task: TaskResults) -> Iterator[str]:
    """Which method a number is, where a figure is too narrow for names."""
    yield '<details class="names"><summary>Which number is which method</summary><ol>'
    for i, row in enumerate(task.rows, 1):
        yield f'<li class="m f-{row.family}" data-m="{i}"><span class="n">{i}</span>{mark_svg(row.family)} '
        yield f"{escape(row.title)}</li>"
    yield "</ol></details>"
