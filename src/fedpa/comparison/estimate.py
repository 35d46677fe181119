"""How long a comparison takes: a round is timed, the rest is rules of thumb until cells have finished."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from statistics import median
from typing import Any

from fedpa.comparison.cells import Cell
from fedpa.methods import find_method, parse_spec

__all__ = ["Estimate", "in_words"]

_ROUNDS = {"device": 20.0, "ceiling": 30.0}
"""Rounds' worth of work of methods that have none, by family."""
_WEIGHT = {"baseline": 0.0, "device": 1.0, "ceiling": 1.0, "federated": 0.7, "adapter": 1.0}
"""Training time of a round compared with FedPA's, by family."""
_BEST_ROUND = 8
"""Where the best round of a method that stops early mostly is."""
_PRETRAIN_EPOCHS = 15
_FIXED = 0.3
"""Seconds that anything takes."""


class Estimate:
    """Seconds of every cell.

    Parameters
    ----------
    timed : mapping
        Per task what `fedpa.comparison.measure.time_a_round` returned.
    """

    def __init__(self, timed: Mapping[str, Mapping[str, float]]) -> None:
        self._timed = timed
        self._seen: dict[tuple[str, str], list[float]] = {}
        self._ratios: list[tuple[str, float]] = []

    def foundation(self, task: str) -> float:
        """Seconds of pre-training."""
        return _FIXED + _PRETRAIN_EPOCHS * self._timed[task]["epoch"]

    def cell(self, cell: Cell, settings: Mapping[str, Any]) -> float:
        """Seconds of a cell: those of its method's other seeds, or else what its settings let expect."""
        seen = self._seen.get((cell.task, cell.spec))
        if seen:
            return sum(seen) / len(seen)
        family = _family(cell)
        ratios = [ratio for name, ratio in self._ratios if name == family] or [ratio for _, ratio in self._ratios]
        return self._expected(cell, settings) * (median(ratios) if ratios else 1.0)

    def learn(self, cell: Cell, settings: Mapping[str, Any], seconds: float) -> None:
        """Take a finished cell's time into account."""
        self._seen.setdefault((cell.task, cell.spec), []).append(seconds)
        self._ratios.append((_family(cell), seconds / self._expected(cell, settings)))

    def _expected(self, cell: Cell, settings: Mapping[str, Any]) -> float:
        timed, family = self._timed[cell.task], _family(cell)
        rounds = _ROUNDS.get(family, float(settings.get("rounds", 0)))
        if settings.get("patience", 0):
            rounds = min(rounds, float(_BEST_ROUND + settings["patience"]))
        # Short batches take more steps over the same rows.
        work = settings.get("epochs", 1) * (1.0 if settings.get("batch_size", 1024) >= 100 else 2.0)
        weight = _WEIGHT[family]
        train = weight * work * timed["train"]
        score = timed["score"] if weight else 0.0
        return float(_FIXED + 3 * timed["score"] + rounds * (train + score))


def _family(cell: Cell) -> str:
    return find_method(parse_spec(cell.spec)[0]).family


def makespan(seconds: Iterable[float], jobs: int) -> float:
    """Seconds that `jobs` workers need for tasks of these lengths, the longest first."""
    ends = [0.0] * jobs
    for length in sorted(seconds, reverse=True):
        heapq.heapreplace(ends, ends[0] + length)
    return max(ends)


def in_words(seconds: float) -> str:
    """``40 s``, ``12 min`` or ``3 h 5 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
