"""Which rows a model learns from, chooses by and is judged on."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from fedpa.data.divide import COLD, OPEN, PRIVATE

__all__ = ["FOUNDATION_VAL_SHARE", "MAX_SUPPORT", "PARTS", "Part", "cuts_in_time", "split", "tie_starts"]

FOUNDATION_VAL_SHARE = 0.1
"""Share of open users, not rows, whose rows are held out: the foundation must serve users it never saw."""

MAX_SUPPORT = 5
"""A cold user's first rows that may be shown to a model before it is judged on the later ones."""


class Part(IntEnum):
    """What a row is for; the member's value is its code."""

    FOUNDATION = 0
    FOUNDATION_VAL = 1
    TRAIN = 2
    VAL = 3
    TEST = 4
    SUPPORT = 5
    COLD_TEST = 6
    UNBIASED = 7
    UNUSED = 8


PARTS = tuple(part.name.lower() for part in Part)
"""Names of the parts in files and arguments; the position of a name is its code."""


def tie_starts(*keys: NDArray[np.generic]) -> NDArray[np.int64]:
    """Position of the first row with the same keys, for rows sorted by them; shape ``[n]``."""
    n = len(keys[0])
    first = np.ones(n, dtype=np.bool_)
    if n:
        first[1:] = False
        for key in keys:
            first[1:] |= key[1:] != key[:-1]
    starts = np.flatnonzero(first)
    return np.repeat(starts, np.diff(np.append(starts, n)))


def cuts_in_time(time: NDArray[np.int64]) -> tuple[int, int]:
    """The instants of the rows at 60% and 80% of all rows in time, where `global-time` cuts."""
    at = [len(time) * 3 // 5, len(time) * 4 // 5]
    ordered = np.partition(time, at)
    return int(ordered[at[0]]), int(ordered[at[1]])


def split(
    user: NDArray[np.uint32],
    time: NDArray[np.int64],
    random: NDArray[np.bool_],
    side: NDArray[np.int8],
    held_out: NDArray[np.bool_],
    cuts: tuple[int, int] | None = None,
) -> NDArray[np.uint8]:
    """Give every row its part.

    Rows of one user at one time always stay together. Without `cuts`, a private user with n rows trains on
    the first ``ceil(3 n / 5)`` and validates up to row ``ceil(4 n / 5)``; the other ``n // 5`` are test rows.
    A user with fewer than five rows trains on all of them. Rows at one time go where the first of them goes.
    A cold user's first `MAX_SUPPORT` rows are support, likewise, and the later ones are test rows; a cold
    user without later rows is unused.

    With `cuts` ``(t1, t2)``, open and private training rows lie before t1, validation rows before t2, test
    rows from t2 on; a cold user's and randomly exposed rows before t2 are unused, so that nothing is judged
    by a model that saw later rows.

    Parameters
    ----------
    user, time : ndarray, shape ``[n]``
        Rows sorted by user, then time.
    random : ndarray of bool, shape ``[n]``
        Randomly exposed rows: test rows of private users only, and never counted.
    side : ndarray of int8, shape ``[n_users]``
    held_out : ndarray of bool, shape ``[n_users]``
        Open users whose rows validate the foundation.
    cuts : (int, int), optional

    Returns
    -------
    ndarray of uint8, shape ``[n]``
        `Part` codes.
    """
    part = np.full(len(user), Part.UNUSED, dtype=np.uint8)
    sides = side[user]
    opened, private, cold = sides == OPEN, (sides == PRIVATE) & ~random, (sides == COLD) & ~random
    exposed = (sides == PRIVATE) & random
    if cuts is not None:
        before, after = time < cuts[0], time >= cuts[1]
        opened &= before
        cold &= after
        exposed &= after
        part[private] = np.where(before, Part.TRAIN, np.where(after, Part.TEST, Part.VAL))[private]
    else:
        place, total = _places(user, time, private)
        train = (place < -(-3 * total // 5)) | (total < 5)
        part[private] = np.where(train, Part.TRAIN, np.where(place < total - total // 5, Part.VAL, Part.TEST))
    part[opened] = np.where(held_out[user[opened]], Part.FOUNDATION_VAL, Part.FOUNDATION)
    place, _ = _places(user, time, cold)
    who = user[cold]
    later = np.bincount(who[place >= MAX_SUPPORT], minlength=len(side)) > 0
    judged = np.where(place < MAX_SUPPORT, Part.SUPPORT, Part.COLD_TEST)
    part[cold] = np.where(later[who], judged, Part.UNUSED)
    part[exposed] = Part.UNBIASED
    return part


def _places(
    user: NDArray[np.uint32], time: NDArray[np.int64], chosen: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of each chosen row: how many of its user's chosen rows have an earlier time, and how many there are."""
    user, time = user[chosen], time[chosen]
    starts = tie_starts(user)
    total = np.bincount(user)[user] if len(user) else starts
    return tie_starts(user, time) - starts, total
