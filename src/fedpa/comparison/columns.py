"""Columns of the tables of a comparison: what each shows of a row, as text."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from statistics import median
from typing import NamedTuple

from fedpa.comparison.results import Difference, Measured, Results, Row, TaskResults
from fedpa.evaluation.significance import least_p

__all__ = [
    "FAMILIES", "NONE", "TASKS", "Column", "by_numbers", "bytes_text", "columns", "difference_text",
    "interval_text", "metric_title", "number", "p_text", "reading",
]  # fmt: skip

FAMILIES = {
    "baseline": "no training",
    "device": "on the device alone",
    "ceiling": "all rows in one place",
    "federated": "federated recommender",
    "adapter": "adapter around the foundation",
}
TASKS = {"click": "Click prediction", "topk": "Next item out of the whole catalogue"}

_METRICS = {"gauc": "GAUC", "auc": "AUC", "logloss": "log-loss", "calibration_ratio": "calibration"}
NONE = "-"


class Column(NamedTuple):
    """A column: its title, what it says of a row that was measured, and whether that is a text."""

    title: str
    text: Callable[[Row], str]
    is_text: bool = False


def metric_title(metric: str) -> str:
    """A metric's name in a table: ``ndcg@10`` is NDCG@10, and so on."""
    if metric in _METRICS:
        return _METRICS[metric]
    name, at, k = metric.partition("@")
    return name.replace("_", " ").upper() + at + k if at or len(name) <= 4 else name.replace("_", " ")


def number(value: float | None, sign: str = "") -> str:
    """Four decimals."""
    return NONE if value is None else f"{value:{sign}.4f}"


def interval_text(measured: Measured | None, sign: str = "") -> str:
    """``0.5953 [0.5813, 0.6091]``; a value alone where there is no interval."""
    if measured is None or measured.value is None:
        return NONE
    if measured.low is None or measured.high is None:
        return number(measured.value, sign)
    return f"{number(measured.value, sign)} [{number(measured.low, sign)}, {number(measured.high, sign)}]"


def p_text(p: float | None) -> str:
    """Three decimals, or that it is below the smallest such number."""
    if p is None:
        return NONE
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def difference_text(difference: Difference | None) -> str:
    """A difference with its interval and its corrected p-value."""
    text = interval_text(difference, "+")
    return text if difference is None or difference.p_holm is None else f"{text} p {p_text(difference.p_holm)}"


def bytes_text(count: float | None) -> str:
    """With a decimal unit: ``18.0 kB``."""
    if count is None:
        return NONE
    for unit in ("B", "kB", "MB"):
        if count < 999.5 or (unit == "B" and count < 1000):
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def by_numbers(name: str) -> tuple[bool, tuple[float, ...], str]:
    """Sorts ``5-9`` before ``10-19`` and ``(10,50]`` before ``500+``; names without numbers come last."""
    numbers = tuple(float(found) for found in re.findall(r"\d+(?:\.\d+)?", name))
    return not numbers, numbers, name


def _seeds_text(values: Sequence[int | None]) -> str:
    """The median over seeds, and their range where they differ."""
    found = [value for value in values if value is not None]
    if not found:
        return NONE
    middle = f"{median(found):g}"
    return middle if min(found) == max(found) else f"{middle} ({min(found)}-{max(found)})"


def _milliseconds(seconds: float | None) -> str:
    if seconds is None:
        return NONE
    return f"{seconds * 1000:.3g}" if seconds < 0.1 else f"{seconds * 1000:.0f}"


def _count(value: int | None) -> str:
    return NONE if value is None else f"{value:,}"


def columns(task: TaskResults, references: Sequence[str]) -> list[Column]:
    """The columns after the method's title: inputs, metrics, differences to `references`, and what it costs."""

    def metric(name: str) -> Column:
        return Column(metric_title(name), lambda row: interval_text(row.metrics.get(name)))

    def difference(reference: str, name: str) -> Column:
        title = f"{metric_title(name)} minus {task.titles.get(reference, reference)}"
        return Column(title, lambda row: difference_text(row.differences.get(reference, {}).get(name)))

    return [
        Column("inputs", lambda row: row.inputs or NONE, True),
        *map(metric, task.metrics),
        *(difference(reference, name) for reference in references for name in task.metrics[:2]),
        Column("up", lambda row: bytes_text(row.bytes_up)),
        Column("down", lambda row: bytes_text(row.bytes_down)),
        Column("best round", lambda row: _seeds_text(row.best_rounds)),
        Column("rounds to 99%", lambda row: _seeds_text(row.rounds_to_99)),
        Column("device ms", lambda row: _milliseconds(row.device_seconds)),
        Column("on the device", lambda row: _count(row.device_parameters)),
        Column("settings", _settings_text, True),
    ]


def _settings_text(row: Row) -> str:
    return f"tuned, {row.trials} trials" if row.settings_from == "tuned" and row.trials else row.settings_from


def reading(results: Results, task: TaskResults) -> list[str]:
    """How to read a table: paragraphs of plain text."""
    level = f"{results.level:.0%}"
    tests = max(0, len(task.measured) - 1)
    paragraphs = [
        f"Values are means over seeds. Brackets are {level} intervals: users were drawn with replacement "
        f"{results.draws:,} times, and seeds within every draw.",
        "Rows are in the order of their families. This is no ranking: intervals of two methods overlap widely and "
        "means differ by less than they are uncertain. Whether two methods differ is read off the difference, which "
        "is taken within every draw, on the same users: where its interval holds zero, the order of the means says "
        "nothing.",
        f"p is two-sided and corrected (Holm) for all {tests} methods that are compared with the same reference in the "
        "same metric; other references and metrics are families of their own. A few seeds cannot say how much seeds "
        "differ: intervals are mostly about users.",
        "Up and down are bytes per user and round; device ms is one user's share of a round's training time in this "
        "simulation, where hundreds are trained at once, so it compares methods and is not a phone's time; on the "
        "device is the number of weights a device stores for itself, what it keeps of shared tables included whole. "
        "Best round and rounds to 99% are medians over seeds, with their range.",
    ]
    least = least_p(results.draws, tests)
    if tests and least > 1 - results.level + 1e-9:
        paragraphs.append(
            f"With {results.draws:,} draws and {tests} methods no corrected p can be below {least:.3f}: "
            f"take at least {40 * tests:,} draws to see one below 0.05."
        )
    return paragraphs
