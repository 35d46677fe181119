"""Item counts of everybody: each device's rows and clicks per item and period, of which the server learns the sum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fedpa.data.dataset import Dataset, ItemCounts, Part

__all__ = ["Tally"]

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Tally:
    """Private users' training rows and clicks per item, period by period.

    What is known at an instant are the periods that ended by then, so that no row knows of itself or of a later one.

    Attributes
    ----------
    ends : ndarray of int64, shape ``[periods]``
        When each period ends, ascending.
    views, clicks : ndarray of int64, shape ``[periods + 1, n_items]``
        Sums over the periods before each one, from none to all.
    """

    ends: Ints
    views: Ints
    clicks: Ints

    @classmethod
    def of(
        cls, dataset: Dataset, periods: int, item: Ints, time: Ints, label: npt.NDArray[Any], train: npt.NDArray[Any]
    ) -> Tally:
        """Sum rows over users.

        Parameters
        ----------
        dataset : Dataset
            The open users' first and last row bound the periods, which are equally long.
        periods : int
        item, time, label : ndarray, shape ``[rows]``
            Of private users.
        train : ndarray of bool, shape ``[rows]``
            Which rows are counted.
        """
        opened = dataset.time[dataset.rows(Part.FOUNDATION, Part.FOUNDATION_VAL)]
        first, last = (int(opened.min()), int(opened.max())) if len(opened) else (0, 1)
        ends = first + (np.arange(1, periods + 1) * (last + 1 - first)) // periods
        ends[-1] = last + 1
        when = np.searchsorted(ends, time, side="right")
        counted = train & (when < periods)
        place = when[counted] * dataset.n_items + item[counted]

        def sums(chosen: npt.NDArray[np.bool_]) -> Ints:
            each = np.bincount(place[chosen], minlength=periods * dataset.n_items).reshape(periods, -1)
            return np.concatenate([np.zeros((1, dataset.n_items), np.int64), each.cumsum(0)])

        return cls(ends, sums(np.ones(len(place), np.bool_)), sums(label[counted] > 0))

    def __add__(self, other: Tally) -> Tally:
        """The counts of both sides' users."""
        return Tally(self.ends, self.views + other.views, self.clicks + other.clicks)

    def at(self, time: Ints) -> Ints:
        """How many periods have ended by each instant."""
        return np.searchsorted(self.ends, time, side="right")

    def added(self, counts: ItemCounts, times: Ints) -> ItemCounts:
        """Open users' counts of the whole catalogue at some instants, with these."""
        when = self.at(times)
        views, clicks = self.views[when], self.clicks[when]
        return ItemCounts(
            counts.views + views,
            counts.clicks + clicks,
            counts.open_views + views.sum(1),
            counts.open_clicks + clicks.sum(1),
        )
