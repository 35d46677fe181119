"""Item columns that were computed from rows of the test period."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedpa.data.dataset import Dataset
from fedpa.evaluation.leaks.chance import normal_tails, partial_rank_correlation, rank_correlation
from fedpa.evaluation.leaks.leak import ALPHA, Leak, has_drawn_negatives, shown

__all__ = ["item_columns"]

PARTIAL = 0.05
"""A rank correlation with later views, among items of equal earlier views, that sound columns may have."""

TOTAL = 0.3
"""A rank correlation with all views that sound columns may have."""

MARGIN = 0.05
"""Share of the variance of later click rates by which a sound column may exceed what is not chance."""

_EARLIER = 0.6
_FEWEST_ITEMS = 50
_FEWEST_ROWS = 4
_GROUPS = 40
_AGE = 2.0  # standard errors

Floats = NDArray[np.float64]


class _Column(NamedTuple):
    """A column in an order of its own: bins, or values that are numbers."""

    name: str
    values: Floats
    level: Literal["leak", "warning"]


def item_columns(dataset: Dataset) -> list[Leak]:
    """Test whether an ordered item column knows later views or later click rates.

    *Views.* The rows are cut at 60% of them in time. A column that counts the whole period, or its end,
    predicts views after the cut among items of equal views before it, by a rank correlation significantly beyond
    `PARTIAL`; and it follows the views of the whole period, beyond `TOTAL`. Age does so too, but predicts earlier views
    the other way round, and is left alone.

    *Click rates.* An item's later click rate scatters about what anybody could have known, by a variance that follows
    from its number of rows. A column that explains more than the rest of the variance has seen the draw.
    """
    columns = _ordered(dataset)
    if not columns:
        return []
    rows = shown(dataset)
    time = dataset.time[rows]
    cut = np.sort(time)[int(_EARLIER * len(time))] if len(time) else 0
    early = time < cut
    earlier, later = (np.bincount(dataset.item[rows[part]], minlength=dataset.n_items) for part in (early, ~early))
    tests = len(columns) * (1 if has_drawn_negatives(dataset) else 2)
    rates = None if has_drawn_negatives(dataset) else _Rates.of(dataset, rows[~early])
    leaks = []
    for column in columns:
        found = _knows_views(column, earlier, later, tests)
        if found is None and rates is not None:
            found = _knows_rates(column, rates, tests)
        if found is not None:
            leaks.append(found)
    return leaks


def _ordered(dataset: Dataset) -> list[_Column]:
    """Columns whose codes have an order; a warning is all that values which are merely numbers can give."""
    columns = []
    for place, facts in enumerate(dataset.manifest["features"]["item"]):
        codes = dataset.item_codes[:, place].astype(np.float64)
        if facts["kind"] == "numeric" or "edges" in facts:
            columns.append(_Column(facts["name"], codes, "leak"))
        elif facts["name"] != "item_id" and len(numbers := _numbers(facts.get("vocabulary", []))) > 2:
            # An offset of 1 keeps code 0 for unknown values, which have no place in the order: the lowest will do.
            table = np.concatenate([[numbers.min() - 1] * int(facts.get("offset", 0)), numbers])
            columns.append(_Column(facts["name"], table[codes.astype(np.int64)], "warning"))
    return columns


def _numbers(vocabulary: list[Any]) -> Floats:
    try:
        return np.array([float(value) for value in vocabulary])
    except ValueError:
        return np.zeros(0)


def _knows_views(column: _Column, earlier: NDArray[Any], later: NDArray[Any], tests: int) -> Leak | None:
    if len(earlier) < _FEWEST_ITEMS:
        return None
    forward, freedom = partial_rank_correlation(column.values, later, earlier)
    backward, _ = partial_rank_correlation(column.values, earlier, later)
    whole = rank_correlation(column.values, earlier + later)
    chance = min(1.0, tests * normal_tails(max(0.0, abs(forward) - PARTIAL) * np.sqrt(freedom)))
    opposite = (-backward * np.sign(forward) - PARTIAL) * np.sqrt(freedom)
    if chance >= ALPHA or opposite > _AGE or whole * np.sign(forward) < TOTAL:
        return None
    return Leak(
        level=column.level,
        kind="item-column",
        where=f"items.parquet, feature {column.name}",
        found=f"among items of equal earlier views it predicts later views (rank correlation {forward:+.3f}), and it "
        f"follows the views of the whole period ({whole:+.3f})",
        expected=f"at most {PARTIAL} or at most {TOTAL} in size: a statistic is to end before the rows it serves",
        evidence=abs(forward),
        p_value=chance,
    )


class _Rates(NamedTuple):
    """Later click rates of items with enough later rows.

    Attributes
    ----------
    item : ndarray, shape ``[items]``
    rate, noise : ndarray, shape ``[items]``
        Click rate, and its variance as far as that is the draw of the clicks: ``p (1 - p) / (rows - 1)``.
    """

    item: NDArray[np.int64]
    rate: Floats
    noise: Floats

    @classmethod
    def of(cls, dataset: Dataset, rows: NDArray[np.int64]) -> _Rates:
        views = np.bincount(dataset.item[rows], minlength=dataset.n_items)
        clicks = np.bincount(dataset.item[rows[dataset.label[rows] == 1]], minlength=dataset.n_items)
        kept = np.flatnonzero(views >= _FEWEST_ROWS).astype(np.int64)
        rate = clicks[kept] / views[kept]
        return cls(kept, rate, rate * (1 - rate) / (views[kept] - 1))

    def shares(self, values: Floats, kept: NDArray[np.bool_] | slice) -> tuple[float, float]:
        """Shares of the variance of rates that `values` explain, and that is not the draw."""
        rate, x = self.rate[kept], values[kept]
        spread = float(rate.var())
        if spread <= 0 or x.var() <= 0:
            return 0.0, 1.0
        attainable = min(1.0, max(0.0, 1 - float(self.noise[kept].mean()) / spread))
        return float(np.corrcoef(rate, x)[0, 1] ** 2), attainable


def _knows_rates(column: _Column, rates: _Rates, tests: int) -> Leak | None:
    n = len(rates.item)
    if n < _FEWEST_ITEMS:
        return None
    values = column.values[rates.item]
    explained, attainable = rates.shares(values, slice(None))
    excess = explained - attainable - MARGIN
    if excess <= 0:
        return None
    # A jackknife over groups of items, since both shares come from the same rates.
    group = np.random.default_rng(0).permutation(n) % _GROUPS
    left_out = [np.subtract(*rates.shares(values, group != one)) for one in range(_GROUPS)]
    error = float(np.sqrt((_GROUPS - 1) * np.var(left_out)))
    chance = min(1.0, tests * normal_tails(excess / max(error, 1e-12)) / 2)
    if chance >= ALPHA:
        return None
    return Leak(
        level=column.level,
        kind="item-column",
        where=f"items.parquet, feature {column.name}",
        found=f"it explains {explained:.0%} of the variance of later click rates",
        expected=f"at most about {attainable:.0%}: the rest is the chance of the clicks themselves",
        evidence=explained,
        p_value=chance,
    )
