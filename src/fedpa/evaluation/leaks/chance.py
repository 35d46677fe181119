"""Tails of distributions and rank correlations, in NumPy alone."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["normal_tails", "partial_rank_correlation", "poisson_tails", "rank_correlation", "ranks"]

SMALLEST = 1e-300
"""Chances are no smaller than this."""

Floats = NDArray[np.float64]


def normal_tails(z: float) -> float:
    """Chance that a standard normal variable is at least ``|z|`` in size; never 0, which stands for certainty."""
    return max(math.erfc(abs(z) / math.sqrt(2.0)), SMALLEST)


def poisson_tails(count: int, mean: float) -> tuple[float, float]:
    """Chances of at most, and of at least, `count` under a Poisson distribution.

    For a sum of independent draws of unequal chances both bound the true tail once `count` is one or more
    away from the mean (Hoeffding, *On the Distribution of the Number of Successes in Independent Trials*, 1956).
    """
    if mean <= 0:
        return 1.0, float(count == 0)
    last = max(count, math.ceil(mean)) + int(40 * math.sqrt(max(count, mean))) + 100
    steps = np.arange(1, last + 1)
    logs = np.concatenate([[0.0], np.cumsum(np.log(mean) - np.log(steps))]) - mean
    chances = np.exp(logs)
    few, many = float(chances[: count + 1].sum()), float(chances[count:].sum())
    return min(1.0, max(few, SMALLEST)), min(1.0, max(many, SMALLEST))


def ranks(values: NDArray[Any], groups: NDArray[np.int64] | None = None) -> Floats:
    """Ranks within groups, ties sharing their mean, as a share of the group and centred; shape ``[n]``."""
    groups = np.zeros(len(values), np.int64) if groups is None else groups
    order = np.lexsort((values, groups))
    value, group = values[order], groups[order]
    new_group = np.append(True, group[1:] != group[:-1])
    new_tie = new_group | np.append(True, value[1:] != value[:-1])
    result = np.empty(len(values))
    tie = _middles(np.flatnonzero(new_tie), len(values))
    whole = _middles(np.flatnonzero(new_group), len(values))
    size = np.bincount(np.cumsum(new_group) - 1)[np.cumsum(new_group) - 1]
    result[order] = (tie - whole) / size
    return result


def _middles(starts: NDArray[np.int64], n: int) -> Floats:
    sizes = np.diff(np.append(starts, n))
    return np.asarray(np.repeat(starts + (sizes - 1) / 2, sizes))


def rank_correlation(x: NDArray[Any], y: NDArray[Any]) -> float:
    """Spearman's rank correlation; 0 where one of them is constant."""
    return _correlation(ranks(x), ranks(y))


def partial_rank_correlation(x: NDArray[Any], y: NDArray[Any], given: NDArray[Any]) -> tuple[float, int]:
    """Rank correlation among items of (nearly) equal `given`, and its degrees of freedom.

    Items are put into groups of equal or neighbouring `given`, ranked within them, and what `given` still
    explains inside a group is removed linearly, so that a noisy copy of `given` correlates with nothing.

    Parameters
    ----------
    x, y, given : ndarray, shape ``[n]``

    Returns
    -------
    correlation : float
    freedom : int
        The correlation times its root is about standard normal where x and y are independent.
    """
    n = len(given)
    order = np.argsort(given, kind="stable")
    ordered = given[order]
    new = np.append(True, ordered[1:] != ordered[:-1])
    starts = np.flatnonzero(new)[np.cumsum(new) - 1]
    groups = np.empty(n, dtype=np.int64)
    groups[order] = starts // max(5, min(20, n // 20))
    rank_x, rank_y, rank_given = (ranks(values, groups) for values in (x, y, given))
    spread = float(rank_given @ rank_given)
    if spread > 0:
        rank_x = rank_x - rank_given * (rank_given @ rank_x) / spread
        rank_y = rank_y - rank_given * (rank_given @ rank_y) / spread
    return _correlation(rank_x, rank_y), max(0, n - len(np.unique(groups)) - 1)


def _correlation(x: Floats, y: Floats) -> float:
    spread = float(x @ x) * float(y @ y)
    return float(x @ y) / math.sqrt(spread) if spread > 1e-18 * len(x) ** 2 else 0.0
