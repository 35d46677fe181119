"""What users did before: the rows that a model may read as a user's history."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedpa.data.split import Part
from fedpa.data.statistics import Counted

__all__ = ["Past", "Queries"]

Ints = NDArray[np.int64]
Counts = NDArray[np.integer]


@dataclass(frozen=True)
class Queries:
    """Moments at which candidates are to be scored, with everything that is known by then.

    Attributes
    ----------
    user, time : ndarray of int64, shape ``[queries]``
        Whose, and when; a time is in the source's unit.
    views, clicks : ndarray, shape ``[queries]``
        How many of the user's own rows may be read, the oldest first, and clicks among them.
    items : ndarray of int64, shape ``[queries, candidates]``
    item_views, item_clicks : ndarray, shape ``[queries, candidates]``
        Rows and clicks of every candidate before that moment.
    all_views, all_clicks : ndarray, shape ``[queries]``
        The same of all items.
    """

    user: Counts
    time: Ints
    views: Counts
    clicks: Counts
    items: Counts
    item_views: Counts
    item_clicks: Counts
    all_views: Counts
    all_clicks: Counts

    def at(self, chosen: slice | Ints) -> Queries:
        """Some of the queries."""
        return Queries(**{name: value[chosen] for name, value in vars(self).items()})

    def __len__(self) -> int:
        return len(self.user)


class Past:
    """Every user's own rows, oldest first; randomly exposed and unused rows are not among them.

    How many of them a row may read is the row's own number of views (``user_views`` of a data set, ``own_views`` of a
    shard's rows), which is causal and frozen at the cut.

    Parameters
    ----------
    counted : Counted
        The rows that users were shown.
    n_users : int

    Attributes
    ----------
    item, time : ndarray of int64, shape ``[n]``
    click : ndarray of bool, shape ``[n]``
    starts : ndarray of int64, shape ``[n_users + 1]``
        Rows of user ``u`` are ``starts[u] : starts[u + 1]``.
    """

    def __init__(self, counted: Counted, n_users: int) -> None:
        used = counted.keep(counted.part < Part.UNBIASED)
        self.item = used.item.astype(np.int64)
        self.time = used.time
        self.click = used.click
        rows = np.bincount(used.user, minlength=n_users)
        self.starts: Ints = np.concatenate([[0], np.cumsum(rows)]).astype(np.int64)

    def recent(self, user: Counts, views: Counts, length: int) -> tuple[Ints, NDArray[np.bool_]]:
        """The latest `length` of every user's first `views` rows.

        Parameters
        ----------
        user, views : ndarray, shape ``[n]``
        length : int

        Returns
        -------
        places : ndarray of int64, shape ``[n, length]``
            Places in `item`, `time` and `click`, the latest last; where there are fewer rows, 0 stands before them.
        real : ndarray of bool, shape ``[n, length]``
        """
        end = self.starts[user] + views
        places = end[:, None] + np.arange(-length, 0)
        real = places >= self.starts[user][:, None]
        return np.where(real, places, 0), real

    def running(self, user: Counts, time: Ints) -> tuple[Ints, Ints]:
        """Own rows strictly before each instant, whatever part they are in, and clicks among them, shape ``[n]``."""
        instants, when = np.unique(np.concatenate([self.time, time]), return_inverse=True)
        owner = np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))
        key = owner * (len(instants) + 1) + when[: len(self.time)]
        end = np.searchsorted(key, user.astype(np.int64) * (len(instants) + 1) + when[len(self.time) :], side="left")
        clicks = np.concatenate([[0], np.cumsum(self.click)])
        begin = self.starts[user]
        return end - begin, clicks[end] - clicks[begin]
