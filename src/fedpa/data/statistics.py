"""Counts of rows strictly before a row's own time, and the smoothed rates that follow from them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedpa.data.split import Part, tie_starts

__all__ = [
    "COUNTS",
    "ITEM_CONTEXT",
    "ITEM_STRENGTH",
    "USER_CONTEXT",
    "USER_STRENGTH",
    "Counted",
    "causal_counts",
    "counts_at",
    "smoothed_rate",
]

COUNTS = ("item_views", "item_clicks", "open_views", "open_clicks", "user_views", "user_clicks")
"""Count columns of ``interactions.parquet``."""

ITEM_CONTEXT = ("item_rate", "item_views")
USER_CONTEXT = ("user_rate", "user_views")

ITEM_STRENGTH = 20.0
"""An item's click rate is drawn to the prior as if by this many views."""

USER_STRENGTH = 5.0
"""A user's click rate is drawn to the prior as if by this many views."""

_Counts = NDArray[np.uint32]


class Counted(NamedTuple):
    """The rows that users were shown, without the randomly exposed ones, sorted by user, then time.

    Attributes
    ----------
    user, item, time : ndarray, shape ``[n]``
    click : ndarray of bool, shape ``[n]``
    part : ndarray of uint8, shape ``[n]``
        An item's and the overall counts are over rows of open users, `opened`, alone; unused rows are counted nowhere.
    """

    user: NDArray[np.uint32]
    item: NDArray[np.uint32]
    time: NDArray[np.int64]
    click: NDArray[np.bool_]
    part: NDArray[np.uint8]

    @property
    def opened(self) -> NDArray[np.bool_]:
        """Which rows are of open users, shape ``[n]``."""
        return self.part <= Part.FOUNDATION_VAL

    def keep(self, kept: NDArray[np.bool_]) -> Counted:
        """Only the rows where `kept` is true."""
        return Counted(self.user[kept], self.item[kept], self.time[kept], self.click[kept], self.part[kept])


def causal_counts(
    user: NDArray[np.uint32],
    item: NDArray[np.uint32],
    time: NDArray[np.int64],
    label: NDArray[np.int8],
    part: NDArray[np.uint8],
) -> dict[str, _Counts]:
    """Count, for every row, the rows strictly before its time: per item, over all open users, and its own.

    Open rows are those of `Part.FOUNDATION` and `Part.FOUNDATION_VAL`. A user's own counts stop at the cut:
    validation rows count training rows, test and randomly exposed rows count training and validation rows,
    a cold user's test rows count none. Randomly exposed and unused rows are counted nowhere.

    Parameters
    ----------
    user, item, time, label, part : ndarray, shape ``[n]``
        Rows sorted by user, then time.

    Returns
    -------
    dict of str to ndarray of uint32, shape ``[n]``
        One array per name in `COUNTS`.
    """
    click = label == 1
    opened = part <= Part.FOUNDATION_VAL
    order = np.argsort(time, kind="stable")
    starts = tie_starts(time[order])
    open_views = _scatter(order, _before(opened[order])[starts])
    open_clicks = _scatter(order, _before((opened & click)[order])[starts])
    rank = _scatter(order, starts)
    del order, starts
    key = item.astype(np.uint64) << np.uint64(32) | rank
    del rank
    order = np.argsort(key)
    of_item, at_time = tie_starts(item[order]), tie_starts(key[order])
    del key
    views, clicks = _before(opened[order]), _before((opened & click)[order])
    item_views = _scatter(order, views[at_time] - views[of_item])
    item_clicks = _scatter(order, clicks[at_time] - clicks[of_item])
    del order, of_item, at_time, views, clicks
    user_views, user_clicks = _own(user, time, click, part)
    every = (item_views, item_clicks, open_views, open_clicks, user_views, user_clicks)
    return dict(zip(COUNTS, every, strict=True))


def counts_at(
    counted: Counted,
    user: NDArray[np.uint32],
    item: NDArray[np.uint32],
    time: NDArray[np.int64],
    part: NDArray[np.uint8],
    cuts: tuple[int, int] | None = None,
) -> dict[str, _Counts]:
    """Counts for rows that are not among the counted ones, such as drawn ones: what was known before each row's time.

    The same as `causal_counts` gives for a row of that user, item and time, where a user's judged rows of one
    part are all of one time, or where `cuts` are the instants at which the user's own counts stop.

    Parameters
    ----------
    counted : Counted
    user, item, time, part : ndarray, shape ``[n]``
        The rows, in any order.
    cuts : (int, int), optional
        The user's own counts of validation rows stop at the first instant, those of test rows at the second.

    Returns
    -------
    dict of str to ndarray of uint32, shape ``[n]``
        One array per name in `COUNTS`.
    """
    until = time
    if cuts is not None:
        until = np.where(part == Part.VAL, np.minimum(time, cuts[0]), time)
        until = np.where(part == Part.TEST, np.minimum(time, cuts[1]), until)
    opened, used = counted.keep(counted.opened), counted.keep(counted.part < Part.UNBIASED)
    every = (
        *_earlier(opened.item, opened.time, opened.click, item, time),
        *_earlier(np.zeros_like(opened.item), opened.time, opened.click, np.zeros_like(item), time),
        *_earlier(used.user, used.time, used.click, user, until),
    )
    return dict(zip(COUNTS, every, strict=True))


def _earlier(
    key: NDArray[np.uint32],
    time: NDArray[np.int64],
    click: NDArray[np.bool_],
    at_key: NDArray[np.uint32],
    at_time: NDArray[np.int64],
) -> tuple[_Counts, _Counts]:
    """Rows of a key strictly before an instant, and clicks among them; both of shape ``[len(at_key)]``."""
    instants = np.unique(time)
    width = len(instants) + 1
    place = key.astype(np.int64) * width + np.searchsorted(instants, time)
    order = np.argsort(place, kind="stable")
    place = place[order]
    clicks = np.concatenate([[0], np.cumsum(click[order])])
    first = at_key.astype(np.int64) * width
    begin = np.searchsorted(place, first)
    end = np.searchsorted(place, first + np.searchsorted(instants, at_time))
    return (end - begin).astype(np.uint32), (clicks[end] - clicks[begin]).astype(np.uint32)


def _own(
    user: NDArray[np.uint32],
    time: NDArray[np.int64],
    click: NDArray[np.bool_],
    part: NDArray[np.uint8],
) -> tuple[_Counts, _Counts]:
    """Own rows and clicks strictly before a row, or before its part where that comes first."""
    at_time, of_user = tie_starts(user, time), tie_starts(user)
    used = part < Part.UNBIASED
    views, clicks = _before(used), _before(used & click)
    user_views = views[at_time] - views[of_user]
    user_clicks = clicks[at_time] - clicks[of_user]
    n_users = int(user[-1]) + 1 if len(user) else 0
    for frozen, before in (
        ((Part.VAL,), (Part.TRAIN,)),
        ((Part.TEST, Part.UNBIASED), (Part.TRAIN, Part.VAL)),
        ((Part.COLD_TEST,), ()),
    ):
        rows = np.flatnonzero(np.isin(part, frozen))
        counted = np.isin(part, before)
        for counts, weight in ((user_views, counted), (user_clicks, counted & click)):
            limit = np.bincount(user[weight], minlength=n_users).astype(np.uint32)
            counts[rows] = np.minimum(counts[rows], limit[user[rows]])
    return user_views, user_clicks


def _before(chosen: NDArray[np.bool_]) -> _Counts:
    """How many rows before each one are chosen, shape ``[n]``."""
    counts: _Counts = np.cumsum(chosen, dtype=np.uint32)
    counts -= chosen
    return counts


def _scatter(order: NDArray[np.int64], values: NDArray[Any]) -> _Counts:
    """Undo a sort: ``result[order] = values``."""
    result = np.empty(len(order), dtype=np.uint32)
    result[order] = values
    return result


def smoothed_rate(
    clicks: NDArray[Any],
    views: NDArray[Any],
    open_clicks: NDArray[Any] | int,
    open_views: NDArray[Any] | int,
    strength: float,
) -> NDArray[np.float64]:
    """Click rate drawn to the click rate of all open rows, ``(clicks + s p) / (views + s)``.

    The prior is ``p = (open_clicks + 1) / (open_views + 2)``, so that it is a half before the first row.
    """
    prior = (np.asarray(open_clicks, dtype=np.float64) + 1.0) / (np.asarray(open_views, dtype=np.float64) + 2.0)
    rate: NDArray[np.float64] = (clicks + strength * prior) / (views + strength)
    return rate
