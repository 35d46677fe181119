"""Item numbers that give popularity or time away."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedpa.data.dataset import Dataset
from fedpa.data.split import Part
from fedpa.evaluation.leaks.chance import normal_tails, ranks
from fedpa.evaluation.leaks.leak import ALPHA, Leak, shown

__all__ = ["item_numbering"]

SORTED = 0.9
"""Share of the greatest possible rank correlation from which numbers count as sorted by popularity."""

FIRST = 0.99
"""Rank correlation with the first occurrence from which numbers count as given out in that order."""

NATURAL = 0.1
"""Rank correlation with views that is not worth a word."""

_FEWEST_ITEMS = 20


def item_numbering(dataset: Dataset) -> list[Leak]:
    """Compare the order of the item table with views and with first occurrences.

    Numbers sorted by views are a leak. Numbers by first occurrence, in time or in the order of the rows, and numbers
    that merely correlate with views are warnings: ids of real catalogues are often given out in time.
    At most one finding, the gravest.
    """
    rows = shown(dataset)
    item = dataset.item[rows]
    occurs = np.flatnonzero(np.bincount(item, minlength=dataset.n_items))
    if len(occurs) < _FEWEST_ITEMS:
        return []
    number = ranks(occurs)
    judged = item[np.isin(dataset.part[rows], (Part.TEST, Part.COLD_TEST))]
    views = {
        f"views in {name}": ranks(np.bincount(some, minlength=dataset.n_items)[occurs])
        for name, some in (("all rows", item), ("test rows", judged))
    }
    correlations = {name: _correlation(number, each) for name, each in views.items()}
    told = " and ".join(f"{correlations[name]:+.3f} with {name}" for name in views)
    for name, each in views.items():
        # Ties keep even sorted numbers from a correlation of 1, hence the share of what is possible.
        possible = math.sqrt(float(each @ each) / float(number @ number))
        if possible > 0.1 and abs(correlations[name]) >= SORTED * possible:
            return _found("leak", f"items are sorted by {name} (rank correlation {told})", correlations[name], occurs)
    for name, when in (("time", dataset.time[rows]), ("the order of rows", rows)):
        correlation = _correlation(number, ranks(_first(item, when, dataset.n_items)[occurs]))
        if correlation >= FIRST:
            text = f"items are numbered by first occurrence in {name} (rank correlation {correlation:+.3f}; {told})"
            return _found("warning", text, correlation, occurs)
    name = max(correlations, key=lambda each: abs(correlations[each]))
    if abs(correlations[name]) > NATURAL:
        return _found("warning", f"numbers follow popularity (rank correlation {told})", correlations[name], occurs)
    return []


def _found(level: Literal["leak", "warning"], found: str, correlation: float, items: NDArray[np.int64]) -> list[Leak]:
    chance = min(1.0, 4 * normal_tails(correlation * math.sqrt(len(items) - 1)))
    if chance >= ALPHA:
        return []
    return [
        Leak(
            level=level,
            kind="item-numbering",
            where="items.parquet, row number",
            found=found,
            expected=f"numbers unrelated to the log (up to {NATURAL} in size)",
            evidence=abs(correlation),
            p_value=chance,
        )
    ]


def _correlation(one: NDArray[np.float64], two: NDArray[np.float64]) -> float:
    spread = float(one @ one) * float(two @ two)
    return float(one @ two) / math.sqrt(spread) if spread > 0 else 0.0


def _first(item: NDArray[np.uint32], when: NDArray[np.int64], n_items: int) -> NDArray[np.int64]:
    """Smallest `when` of every item, shape ``[n_items]``."""
    first = np.full(n_items, np.iinfo(np.int64).max)
    np.minimum.at(first, item, when)
    return first
