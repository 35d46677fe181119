"""Pieces of users' pasts of one fixed length, each of which is read in one pass for all its prefixes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedpa.data.past import Past, Queries
from fedpa.models.history.encoder import GAPS

__all__ = ["Windows", "gap_codes"]

Ints = NDArray[np.int64]

_OCTAVES = (GAPS - 2) // 2


def gap_codes(gap: Ints, unit: float) -> Ints:
    """Codes of times between interactions, in octaves around a unit; 0 where there is none."""
    edges = unit * np.exp2(np.arange(1 - _OCTAVES, _OCTAVES + 1))
    return np.where(gap > 0, 1 + np.searchsorted(edges, gap, side="right"), 0)


@dataclass(frozen=True)
class Windows:
    """Which window of a user's past each query reads, and up to where.

    The first window begins at the user's first row, and each next one half a window later; a query with so many views
    reads the first window in which they end. So it reads its latest `length` rows or, of a longer past, at least half
    as many, which rows they are depends on its views alone, and one window serves all prefixes that end in it.

    Attributes
    ----------
    user, begin, end : ndarray of int64, shape ``[windows]``
        Whose; the first row, among the user's; and the row after the last that any of the queries may read.
    length : int
        Rows of a window.
    window, prefix : ndarray of int64, shape ``[queries]``
        The window of each query, and how many of its rows the query reads.
    """

    user: Ints
    begin: Ints
    end: Ints
    length: int
    window: Ints
    prefix: Ints

    @classmethod
    def of(cls, queries: Queries, length: int) -> Windows:
        """The windows of some queries, by user and begin."""
        views, stride = queries.views.astype(np.int64), max(1, length // 2)
        number = np.maximum(0, -((length - views) // stride))
        most = int(number.max(initial=0)) + 1
        found, window = np.unique(queries.user.astype(np.int64) * most + number, return_inverse=True)
        end = np.zeros(len(found), np.int64)
        np.maximum.at(end, window, views)
        return cls(found // most, found % most * stride, end, length, window, views - number * stride)

    def __len__(self) -> int:
        return len(self.user)

    def events(self, past: Past, unit: float) -> tuple[Ints, Ints, Ints]:
        """Items, clicks and codes of time gaps [windows, length]; zeros from `end` on, whatever comes there."""
        first = past.starts[self.user][:, None]
        own = self.begin[:, None] + np.arange(self.length)
        real = own < self.end[:, None]
        place = np.where(real, first + own, 0)
        gap = np.where(real & (own > 0), past.time[place] - past.time[place - 1], 0)
        return past.item[place] * real, past.click[place].astype(np.int64) * real, gap_codes(gap, unit)
