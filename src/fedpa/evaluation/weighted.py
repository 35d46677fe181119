"""Click metrics as functions of how often each user counts: what a draw of users needs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fedpa.evaluation.metrics import Floats, Ints, row_log_loss, tally_rows

__all__ = ["CLICK_METRICS", "Draws", "WeightedClicks", "drawn_users", "mean_of_drawn"]

CLICK_METRICS = ("gauc", "auc", "logloss", "calibration_ratio")

_CELLS = 1 << 20
"""Rows times draws that are worked on at once: a few of such arrays fit into a processor's cache."""


class Draws(NamedTuple):
    """Some draws of users, and of runs within each.

    Attributes
    ----------
    counts : int32 array [users, draws]
        How often each user was drawn.
    weights : float64 array [users, draws]
        The same as floats.
    runs : dict of int to int64 array [draws, runs]
        For every number of runs, how often each was drawn.
    """

    counts: npt.NDArray[np.int32]
    weights: Floats
    runs: dict[int, Ints]


def drawn_users(users: int, runs: Sequence[int], draws: int, seed: int, rows: int) -> Iterator[Draws]:
    """Draw users, then runs, with replacement, and as many as there are of each.

    Parameters
    ----------
    users : int
        At least 1.
    runs : sequence of int
        Numbers of runs to draw for. Each is drawn once per draw of users, the largest first; one run is no draw.
    draws, seed : int
        Draws come from ``numpy.random.Philox(seed)``.
    rows : int
        Rows that the draws are used on: decides how many draws are given at once.

    Yields
    ------
    Draws
        Together `draws` of them, in order.
    """
    generator = np.random.Generator(np.random.Philox(seed))
    several = sorted({number for number in runs if number > 1}, reverse=True)
    at_once = max(1, min(64, _CELLS // max(rows, users)))
    for begin in range(0, draws, at_once):
        size = min(at_once, draws - begin)
        counts = np.empty((size, users), dtype=np.int32)
        found = {number: np.ones((size, 1), dtype=np.int64) for number in (1, *several)}
        found |= {number: np.empty((size, number), dtype=np.int64) for number in several}
        for draw in range(size):
            counts[draw] = np.bincount(generator.integers(0, users, size=users), minlength=users)
            for number in several:
                picks = generator.integers(0, number, size=number)
                found[number][draw] = np.bincount(picks, minlength=number)
        columns = np.ascontiguousarray(counts.T)
        yield Draws(columns, columns.astype(np.float64), found)


def mean_of_drawn(values: Floats, runs: dict[int, Ints]) -> Floats:
    """Mean over the runs drawn.

    Parameters
    ----------
    values : array [runs, metrics, draws]
    runs : dict
        As in `Draws`.

    Returns
    -------
    array [metrics, draws]
        NaN where a metric of a drawn run is.
    """
    times = runs[len(values)].T[:, None]
    mean: Floats = np.where(times > 0, values * times, 0).sum(axis=0) / len(values)
    return mean


class WeightedClicks:
    """GAUC, AUC, log-loss and calibration ratio of one run, with every user counted some number of times.

    Parameters
    ----------
    names, codes : arrays
        As from `metrics.user_codes`.
    y, s : array [rows]
        As from `metrics.check_rows`; probabilities.
    """

    def __init__(self, names: npt.NDArray[Any], codes: Ints, y: Ints, s: Floats) -> None:
        tally = tally_rows(names, codes, y, s)
        both, value, both_rows = tally.both()
        users = names.size
        self._totals = np.zeros((6, users))
        self._totals[0, both] = value * both_rows
        self._totals[1, both] = both_rows
        self._totals[2] = tally.clicks
        self._totals[3] = tally.others
        self._totals[4] = np.bincount(codes, weights=row_log_loss(y, s), minlength=users)
        self._totals[5] = np.bincount(codes, weights=s, minlength=users)
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
        self._has_ties = bool((self._low != self._high).any())

    def __call__(self, drawn: Draws) -> Floats:
        """Metrics [CLICK_METRICS, draws]; NaN where one is undefined."""
        gauc_sum, gauc_rows, clicks, others, loss, predicted = self._totals @ drawn.weights
        pairs = clicks * others
        wins = self._wins(drawn.counts, float(pairs.max(initial=0)))
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.stack(
                [
                    np.where(gauc_rows > 0, gauc_sum / gauc_rows, np.nan),
                    np.where(pairs > 0, wins / pairs, np.nan),
                    np.where(clicks + others > 0, loss / (clicks + others), np.nan),
                    np.where(clicks > 0, predicted / clicks, np.nan),
                ]
            )

    def _wins(self, counts: npt.NDArray[np.int32], pairs: float) -> Floats:
        """Pairs won by the click, a tie as one half, of every draw: counted in integers, so exact.

        `pairs` is the most that a draw has.
        """
        # `take` copies whole rows; indexing does the same several times slower.
        others = counts.take(self._other_user, axis=0)
        clicks = counts.take(self._click_user, axis=0)
        before = np.zeros((len(others) + 1, counts.shape[1]), dtype=np.int32)
        np.add.accumulate(others, axis=0, dtype=np.int32, out=before[1:])
        ahead = before.take(self._low, axis=0)
        if self._has_ties:
            ahead += before.take(self._high, axis=0)
        # Wins, doubled where there are ties, are at most twice the pairs; in 32 bits the sum takes half the time.
        kind = np.int32 if 2 * pairs < 2**31 else np.int64
        found: Ints = np.einsum("cd,cd->d", clicks.astype(kind, copy=False), ahead.astype(kind, copy=False))
        wins: Floats = found / (2 if self._has_ties else 1)
        return wins
