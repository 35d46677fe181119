"""Intervals by drawing users with replacement: rows of one user are not independent of each other.

Where a method was run with several seeds, runs are drawn with replacement within every draw of users.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fedpa.errors import FedpaError
from fedpa.evaluation.metrics import Floats, auc, check_rows, gauc, log_loss, user_codes
from fedpa.evaluation.weighted import WeightedClicks, drawn_users, mean_of_drawn

__all__ = ["Bootstrap", "Interval", "bootstrap_users", "interval_of"]

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
    models = [[WeightedClicks(names, codes, y, s) for y, s, _ in one] for one in checked]
    observed = [
        [np.nan if any(v is None for v in column) else float(np.mean(column)) for column in zip(*rows, strict=True)]
        for rows in ([(gauc(u, y, s).value, auc(y, s), log_loss(y, s)) for y, s, u in one] for one in checked)
    ]
    n = names.size
    values = np.full((draws, len(models), len(METRICS)), np.nan)
    done = 0
    for drawn in drawn_users(n, [runs], draws, seed, codes.size) if n else ():
        end = done + drawn.counts.shape[1]
        for place, model in enumerate(models):
            found = np.stack([one(drawn)[: len(METRICS)] for one in model])
            values[done:end, place] = mean_of_drawn(found, drawn.runs).T
        done = end
    intervals = {name: interval_of(observed[0][i], values[:, 0, i], level) for i, name in enumerate(METRICS)}
    differences = {}
    if baseline is not None:
        differences = {
            name: interval_of(observed[0][i] - observed[1][i], values[:, 0, i] - values[:, 1, i], level)
            for i, name in enumerate(METRICS)
        }
    return Bootstrap(n, draws, seed, level, intervals, differences)


def interval_of(observed: float, values: Floats, level: float) -> Interval:
    """The observed value with the percentiles and the spread of the draws [draws]; NaN is undefined."""
    value = None if np.isnan(observed) else float(observed)
    drawn = values[~np.isnan(values)]
    if drawn.size < 2:
        return Interval(value, None, None, None)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high), float(drawn.std(ddof=1)))
