"""Negatives as the published code draws them, before the split, or after it.

The published code of PFedRec (Zhang et al., IJCAI 2023) takes all items that a user never interacted with, before it
splits, and draws everything from them. So a user's validation and test items are the only ones that are neither a
training positive nor ever a training negative: what a model learns of an item by not seeing it tells them from the 99
others. Drawn after the split, a training negative is any item that is no training positive, and a validation negative
any that is neither that nor the validation item; they may be the test item. Test negatives are the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedpa.data.leave_one_out import pair_keys
from fedpa.draws import uniform, user_keys
from fedpa.errors import DataError
from fedpa.reproduction.ratings import Ratings, TrainingRows

__all__ = ["NEGATIVES", "PROTOCOLS", "Pool", "Protocol", "evaluation_negatives", "training_rows"]

Protocol = Literal["after-split", "published"]
PROTOCOLS: tuple[Protocol, ...] = ("after-split", "published")
NEGATIVES = 4
"""Per training positive."""

Ints = NDArray[np.int64]
_CELLS = 1 << 21


@dataclass(frozen=True)
class Pool:
    """The items that may be drawn for each user: the catalogue without some of them.

    Attributes
    ----------
    n_items : int
    start : int64 array [users + 1]
        First place of each user in `gaps`.
    gaps : int64 array [left out]
        For the left-out items of a user in ascending order, ``user * n_items`` plus the number of items that may be
        drawn before each.
    """

    n_items: int
    start: Ints
    gaps: Ints

    @classmethod
    def of(cls, ratings: Ratings, protocol: Protocol) -> Pool:
        """Items that may be a training negative.

        Raises
        ------
        DataError
            If fewer than `NEGATIVES` are left to a user.
        """
        out = ratings.nth > (-1 if protocol == "published" else 1)
        pair = np.sort(ratings.user[out] * ratings.n_items + ratings.item[out])
        start = np.searchsorted(pair, np.arange(ratings.n_users + 1) * ratings.n_items)
        pool = cls(ratings.n_items, start, pair - (np.arange(len(pair)) - start[pair // ratings.n_items]))
        _enough(ratings, pool.size, NEGATIVES, "train with")
        return pool

    @property
    def size(self) -> Ints:
        """How many items may be drawn for each user [users]."""
        return self.n_items - np.diff(self.start)

    def items(self, users: Ints, places: Ints) -> Ints:
        """The items at some places among those that may be drawn, in ascending order; shapes broadcast."""
        before = np.searchsorted(self.gaps, users * self.n_items + places, side="right") - self.start[users]
        found: Ints = places + before
        return found


def training_rows(ratings: Ratings, pool: Pool, *, seed: int, round_number: int) -> TrainingRows:
    """Every training positive, followed by `NEGATIVES` different items drawn for it.

    Parameters
    ----------
    ratings : Ratings
    pool : Pool
    seed, round_number : int
        Draws are a hash of both, the user's id and the place of the positive among the user's.
    """
    here = ratings.nth > 1
    user, item, nth = ratings.user[here], ratings.item[here], ratings.nth[here]
    keys = pair_keys(user_keys(ratings.user_ids)[user], nth)
    places = np.empty((len(user), NEGATIVES), np.int64)
    left = pool.size[user] - NEGATIVES
    for each in range(NEGATIVES):
        # Floyd's sampling without repetition: a place that was taken gives way to the last one that may be drawn now.
        last = left + each
        chance = uniform(seed, "reproduction/negatives", (round_number, each), keys)
        drawn = (chance * (last + 1)).astype(np.int64)
        taken = (places[:, :each] == drawn[:, None]).any(1)
        places[:, each] = np.where(taken, last, drawn)
    items = np.concatenate([item[:, None], pool.items(user[:, None], places)], axis=1)
    label = np.zeros_like(items)
    label[:, 0] = 1
    return TrainingRows(ratings, np.repeat(user, 1 + NEGATIVES), items.reshape(-1), label.reshape(-1))


def evaluation_negatives(ratings: Ratings, protocol: Protocol, *, sampled: int, seed: int) -> tuple[Ints, Ints]:
    """Items that the validation and the test item are ranked among, each [users, sampled], without repetition.

    As published the two are disjoint.

    Raises
    ------
    DataError
        If a user has rated so much that too few items are left.
    """
    published = protocol == "published"
    rated = np.bincount(ratings.user, minlength=ratings.n_users)
    _enough(ratings, ratings.n_items - rated, sampled * (1 + published), "be judged")
    start = np.concatenate([[0], np.cumsum(rated)])
    keys, items = user_keys(ratings.user_ids), np.arange(ratings.n_items, dtype=np.uint64)
    validation, test = (np.empty((ratings.n_users, sampled), np.int64) for _ in range(2))
    step = max(1, _CELLS // ratings.n_items)
    for begin in range(0, ratings.n_users, step):
        end = min(begin + step, ratings.n_users)
        own, rows = slice(start[begin], start[end]), np.arange(end - begin)
        free = np.ones((end - begin, ratings.n_items), np.bool_)
        free[ratings.user[own] - begin, ratings.item[own]] = False
        cell = pair_keys(keys[begin:end, None], items[None])
        test[begin:end] = _lowest(uniform(seed, "reproduction/test", (), cell), free, sampled)
        if published:
            free[rows[:, None], test[begin:end]] = False
        else:
            free[rows, ratings.test[begin:end]] = True
        validation[begin:end] = _lowest(uniform(seed, "reproduction/validation", (), cell), free, sampled)
    return validation, test


def _lowest(chance: NDArray[np.float64], free: NDArray[np.bool_], many: int) -> Ints:
    """Columns of the `many` lowest chances among the free ones of each row [rows, many]."""
    chance = np.where(free, chance, 2.0)
    found: Ints = np.argpartition(chance, many - 1, axis=1)[:, :many].astype(np.int64)
    return found


def _enough(ratings: Ratings, left: Ints, needed: int, purpose: str) -> None:
    few = np.flatnonzero(left < needed)
    if len(few):
        raise DataError(
            f"{ratings.name}: user {ratings.user_ids[int(few[0])]} has {left[few[0]]} items left to {purpose}, "
            f"expected at least {needed}",
            "use the whole official files",
        )
