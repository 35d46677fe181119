"""Intervals by drawing users with replacement: rows of one user are not independent of each other.

Where a method was run with several seeds, runs are drawn with replacement within every draw of users.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fedpa.errors import FedpaError
from fedpa.evaluation.metrics import (
    Floats,
    Ints,
    auc,
    check_rows,
    gauc,
    log_loss,
    row_log_loss,
    tally_rows,
    user_codes,
)

__all__ = ["Bootstrap", "Interval", "bootstrap_users"]

METRICS = ("gauc", "auc", "logloss")


class Interval(NamedTuple):
    """A metric with its percentile interval over draws of users.

    Attributes
    ----------
    value : float or None
        On the users as they are; ``None`` where it is undefined.
    low, high : float or None
    standard_error : float or None
        Standard deviation over draws.
    """

    value: float | None
    low: float | None
    high: float | None
    standard_error: float | None


@dataclass(frozen=True)
class Bootstrap:
    """Intervals of ``gauc``, ``auc`` and ``logloss``.

    Attributes
    ----------
    users, draws, seed : int
    level : float
        For instance 0.95.
    intervals : dict of str to Interval
    differences : dict of str to Interval
        `scores` minus `baseline`, on the same draws; empty without a baseline.
    """

    users: int
    draws: int
    seed: int
    level: float
    intervals: dict[str, Interval]
    differences: dict[str, Interval] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The same, ready for JSON."""
        return {
            "users": self.users,
            "draws": self.draws,
            "seed": self.seed,
            "level": self.level,
            "intervals": {name: interval._asdict() for name, interval in self.intervals.items()},
            "differences": {name: interval._asdict() for name, interval in self.differences.items()},
        }


class _Weighted:
    """GAUC, AUC and log-loss as functions of how often each user counts."""

    def __init__(self, names: npt.NDArray[Any], codes: Ints, y: Ints, s: Floats) -> None:
        tally = tally_rows(names, codes, y, s)
        both, value, both_rows = tally.both()
        users = names.size
        self._totals = np.zeros((5, users))
        self._totals[0, both] = value * both_rows
        self._totals[1, both] = both_rows
        self._totals[2] = tally.clicks
        self._totals[3] = tally.others
        self._totals[4] = np.bincount(codes, weights=row_log_loss(y, s), minlength=users)
        # A click wins over the others before `low` in ascending order, and ties with those up to `high`.
        click = y == 1
        order = np.argsort(s[~click])
        other_scores = s[~click][order]
        self._other_user = codes[~click][order]
        by_score = np.argsort(s[click])
        self._click_user = codes[click][by_score]
        click_scores = s[click][by_score]
        self._low = np.searchsorted(other_scores, click_scores, side="left")
        self._high = np.searchsorted(other_scores, click_scores, side="right")
        self._before = np.zeros(other_scores.size + 1)

    def __call__(self, weight: Floats) -> tuple[float, float, float]:
        """Metrics with user u counted ``weight[u]`` (a whole number of) times; NaN where undefined."""
        # Not `@`: for so small a product the threads of a matrix library cost more than they save.
        gauc_sum, gauc_rows, clicks, others, loss = np.einsum("ku,u->k", self._totals, weight).tolist()
        before = self._before
        np.cumsum(weight[self._other_user], out=before[1:])
        wins = float(np.einsum("i,i->", weight[self._click_user], before[self._low] + before[self._high])) / 2
        return (
            gauc_sum / gauc_rows if gauc_rows else np.nan,
            wins / (clicks * others) if clicks and others else np.nan,
            loss / (clicks + others) if clicks + others else np.nan,
        )


def bootstrap_users(
    users: npt.ArrayLike,
    labels: npt.ArrayLike,
    scores: npt.ArrayLike,
    *,
    baseline: npt.ArrayLike | None = None,
    draws: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Bootstrap:
    """Percentile intervals of GAUC, AUC and log-loss over draws of users, and of runs within.

    Every draw takes as many users as there are, with replacement and with all their rows; a user drawn
    twice counts twice. Draws come from ``numpy.random.Philox(seed)`` over users in ascending order, so they do
    not depend on the order of rows. With several runs of the same rows, every draw also takes as many runs as there
    are, with replacement, and averages the metric over them.

    Parameters
    ----------
    users, labels : array [rows]
        As in `metrics.check_rows`.
    scores : array [rows] or [runs, rows]
        Probabilities, of one run or of several.
    baseline : array [rows] or [runs, rows], optional
        Probabilities of another model for the same rows: adds paired differences. As many runs as `scores`, each the
        counterpart of one of those, or one.
    draws : int
        At least 2.
    seed : int
    level : float
        In (0, 1).

    Returns
    -------
    Bootstrap
        A draw in which a metric is undefined does not count for it.

    Raises
    ------
    FedpaError
        As `metrics.check_rows`; or where `draws` or `level` is out of range, or the numbers of runs do not match.

    References
    ----------
    Efron and Tibshirani, *An Introduction to the Bootstrap*, 1993, chapter 13.
    """
    if draws < 2 or not 0 < level < 1:
        raise FedpaError(f"draws must be at least 2 and level in (0, 1), got {draws} and {level}")
    given = [np.atleast_2d(np.asarray(scores))]
    if baseline is not None:
        given.append(np.atleast_2d(np.asarray(baseline)))
    runs = len(given[0])
    if runs == 0 or len(given[-1]) not in (1, runs):
        raise FedpaError(f"scores have {runs} runs and the baseline {len(given[-1])}; expected as many, or one")
    checked = [[check_rows(labels, run, users, probabilities=True) for run in one] for one in given]
    names, codes = user_codes(checked[0][0][2])
    models = [[_Weighted(names, codes, y, s) for y, s, _ in one] for one in checked]
    observed = [
        [np.nan if any(v is None for v in column) else float(np.mean(column)) for column in zip(*rows, strict=True)]
        for rows in ([(gauc(u, y, s).value, auc(y, s), log_loss(y, s)) for y, s, u in one] for one in checked)
    ]
    n = names.size
    values = np.full((draws, len(models), len(METRICS)), np.nan)
    generator = np.random.Generator(np.random.Philox(seed))
    if n:
        for draw in range(draws):
            weight = np.bincount(generator.integers(0, n, size=n), minlength=n).astype(np.float64)
            drawn = np.bincount(generator.integers(0, runs, size=runs), minlength=runs) if runs > 1 else np.ones(1)
            for place, model in enumerate(models):
                values[draw, place] = _mean_of_drawn(model, drawn if len(model) > 1 else np.ones(1), weight)
    intervals = {name: _interval(observed[0][i], values[:, 0, i], level) for i, name in enumerate(METRICS)}
    differences = {}
    if baseline is not None:
        differences = {
            name: _interval(observed[0][i] - observed[1][i], values[:, 0, i] - values[:, 1, i], level)
            for i, name in enumerate(METRICS)
        }
    return Bootstrap(n, draws, seed, level, intervals, differences)


def _mean_of_drawn(model: list[_Weighted], drawn: npt.NDArray[Any], weight: Floats) -> Floats:
    """Metrics averaged over runs, run r counted ``drawn[r]`` times."""
    found = [(times, one(weight)) for one, times in zip(model, drawn, strict=True) if times]
    return np.average([value for _, value in found], axis=0, weights=[times for times, _ in found])


def _interval(observed: float, values: Floats, level: float) -> Interval:
    """The observed value with the percentiles and the spread of the draws; NaN is undefined."""
    value = None if np.isnan(observed) else observed
    drawn = values[~np.isnan(values)]
    if drawn.size < 2:
        return Interval(value, None, None, None)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high), float(drawn.std(ddof=1)))
