"""Top-k over the whole catalogue: HR@k, NDCG@k, Recall@k and coverage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fedpa.errors import FedpaError
from fedpa.evaluation.metrics import FIXED_ONE, Floats, Ints, fixed_sum, user_codes

__all__ = ["Pairs", "TopK", "ranking_report", "top_k"]

Pairs = Sequence[npt.ArrayLike]
"""(user rows in the block, items): two integer arrays of one length, as `numpy.nonzero` gives them."""


def _matrix(scores: Any) -> npt.NDArray[Any]:
    """Scores as an array of floats; a torch tensor is taken off its device and graph."""
    detach = getattr(scores, "detach", None)
    array = np.asarray(detach().cpu().numpy() if detach is not None else scores)
    if array.ndim != 2:
        raise FedpaError(f"scores must be [users, items], got shape {array.shape}")
    if not np.issubdtype(array.dtype, np.floating):
        array = array.astype(np.float64)
    bad = array.size - int(np.count_nonzero(np.isfinite(array)))
    if bad:
        raise FedpaError(f"{bad} of {array.size} scores are not finite ({int(np.isnan(array).sum())} NaN)")
    return array


def _pairs(name: str, pairs: Pairs | None, shape: tuple[int, int]) -> tuple[Ints, Ints]:
    """Check (row, item) pairs against the block's shape."""
    if pairs is None:
        none = np.zeros(0, dtype=np.int64)
        return none, none
    if len(pairs) != 2:
        raise FedpaError(f"{name} must be a pair of arrays (user rows, items), got {len(pairs)} of them")
    rows, items = (np.asarray(side, dtype=np.int64) for side in pairs)
    if rows.ndim != 1 or rows.shape != items.shape:
        raise FedpaError(f"{name} must be two equally long arrays, got shapes {rows.shape} and {items.shape}")
    outside = (rows < 0) | (rows >= shape[0]) | (items < 0) | (items >= shape[1])
    if outside.any():
        first = int(np.flatnonzero(outside)[0])
        raise FedpaError(
            f"{int(outside.sum())} of {rows.size} {name} pairs are outside the block of {shape[0]} users and "
            f"{shape[1]} items, the first is (user {rows[first]}, item {items[first]})"
        )
    return rows, items


def top_k(scores: Any, k: int, seen: Pairs | None = None) -> Ints:
    """The k best unseen items of every user; of equal scores the lower item number comes first.

    Parameters
    ----------
    scores : array or tensor [users, items]
        Finite.
    k : int
        At least 1.
    seen : (rows, items), optional
        Pairs never to be returned.

    Returns
    -------
    int64 array [users, k]
        Best first; -1 where fewer than k items are left.

    Raises
    ------
    FedpaError
        Where k is below 1, a score is not finite or a pair is outside the block.
    """
    if k < 1:
        raise FedpaError(f"k must be at least 1, got {k}")
    array = _matrix(scores)
    return _select(array, k, _pairs("seen", seen, array.shape))


def _select(array: npt.NDArray[Any], k: int, seen: tuple[Ints, Ints]) -> Ints:
    """`top_k` of checked arguments."""
    users, items = array.shape
    chosen = np.full((users, k), -1, dtype=np.int64)
    width = min(k, items)
    if users == 0 or width == 0:
        return chosen
    masked = array
    if seen[0].size:
        masked = array.copy()
        masked[seen] = -np.inf
    # The k-th best value is the same whatever the partition does with ties; ties are settled by item number.
    limit = np.partition(masked, items - width, axis=1)[:, items - width, None]
    above = masked > limit
    level = masked == limit
    surplus = np.flatnonzero(above.sum(axis=1) + level.sum(axis=1) > width)
    if surplus.size:
        room = width - above[surplus].sum(axis=1, keepdims=True)
        level[surplus] &= np.cumsum(level[surplus], axis=1) <= room
    picked = np.nonzero(above | level)[1].reshape(users, width)
    best = np.take_along_axis(masked, picked, axis=1)
    order = np.argsort(-best, axis=1, kind="stable")
    found = np.take_along_axis(picked, order, axis=1)
    left = np.take_along_axis(best, order, axis=1) > -np.inf
    chosen[:, :width] = np.where(left, found, -1)
    return chosen


def _user_values(codes: Ints, n_users: int, ranks: Ints, k: int) -> tuple[Floats, Floats, Floats]:
    """HR@k, NDCG@k and Recall@k of every user, from the 1-based ranks of the user's positives."""
    order = np.lexsort((ranks, codes))
    codes, ranks = codes[order], ranks[order]
    hit = ranks <= k
    total = np.bincount(codes, minlength=n_users)
    hits = np.bincount(codes[hit], minlength=n_users)
    discount = 1 / np.log2(np.arange(2, k + 2))
    gained = np.bincount(codes[hit], weights=discount[ranks[hit] - 1], minlength=n_users)
    ideal = np.concatenate(([0.0], np.cumsum(discount)))[np.minimum(total, k)]
    return (hits > 0).astype(np.float64), gained / ideal, hits / total


def ranking_report(users: npt.ArrayLike, ranks: npt.ArrayLike, k: int) -> dict[str, float | int | None]:
    """HR@k, NDCG@k and Recall@k, each the mean over users with a positive.

    HR@k is 1 for a user with a positive in the top k. NDCG@k is ``sum(1 / log2(1 + rank))`` over the user's
    positives in the top k, divided by its value with ``min(k, positives)`` of them in front. Recall@k
    divides hits by all the user's positives.

    Parameters
    ----------
    users : array [positives]
        Any sortable identifiers.
    ranks : int array [positives]
        From 1; a positive outside the list may have any rank above k.
    k : int

    Returns
    -------
    dict
        ``hr@k``, ``ndcg@k``, ``recall@k`` (``None`` without a positive), ``users``, ``positives``.
    """
    places = np.asarray(ranks, dtype=np.int64)
    names, codes = user_codes(np.asarray(users))
    if places.shape != codes.shape or (places < 1).any() or k < 1:
        raise FedpaError("every positive needs a user and a rank of at least 1, and k must be at least 1")
    values = _user_values(codes, names.size, places, k)
    return _means([fixed_sum(value) for value in values], names.size, places.size, k)


def _means(sums: list[int], users: int, positives: int, k: int) -> dict[str, float | int | None]:
    report: dict[str, float | int | None] = {
        f"{name}@{k}": total / (users * FIXED_ONE) if users else None
        for name, total in zip(("hr", "ndcg", "recall"), sums, strict=True)
    }
    return report | {"users": users, "positives": positives}


class TopK:
    """Adds up full-catalogue ranking over blocks of users; the result does not depend on the blocks.

    Parameters
    ----------
    k : int
        Length of the list.
    n_items : int
        Size of the catalogue.

    Attributes
    ----------
    k, n_items : int
    recommended : bool array [n_items]
        Items in the top k of any user so far.
    """

    def __init__(self, k: int, n_items: int) -> None:
        if k < 1 or n_items < 1:
            raise FedpaError(f"k and n_items must be at least 1, got {k} and {n_items}")
        self.k = k
        self.n_items = n_items
        self.recommended = np.zeros(n_items, dtype=np.bool_)
        self._sums = [0, 0, 0]
        self._users = 0
        self._positives = 0
        self._dropped = 0

    def add(self, scores: Any, positives: Pairs, seen: Pairs | None = None) -> Ints:
        """Rank one block of users; each user belongs to one block only.

        Parameters
        ----------
        scores : array or tensor [users, n_items]
            Finite. Equal scores rank by item number, whichever of them is a positive.
        positives : (rows, items)
            Held-out clicks. A repeated pair counts once; a pair that is also in `seen` cannot be
            recommended and is left out (the report counts them).
        seen : (rows, items), optional
            Pairs that must not be recommended, such as training rows.

        Returns
        -------
        int64 array [users, k]
            The lists, best first; -1 where a user has fewer than k unseen items. Users without a positive
            get a list too: it counts for coverage only.

        Raises
        ------
        FedpaError
            Where shapes do not fit, a score is not finite or a pair is outside the block.
        """
        array = _matrix(scores)
        if array.shape[1] != self.n_items:
            raise FedpaError(f"scores have {array.shape[1]} items, expected {self.n_items}")
        known = _pairs("seen", seen, array.shape)
        rows, items = _pairs("positives", positives, array.shape)
        lists = _select(array, self.k, known)
        wanted = np.unique(rows * self.n_items + items)
        is_new = ~np.isin(wanted, known[0] * self.n_items + known[1])
        self._dropped += wanted.size - int(is_new.sum())
        wanted = wanted[is_new]

        filled = lists >= 0
        self.recommended[lists[filled]] = True
        block_row, place = np.nonzero(filled)
        listed = block_row * self.n_items + lists[filled]
        ranks = np.full(wanted.size, self.k + 1, dtype=np.int64)
        _, at, where = np.intersect1d(wanted, listed, assume_unique=True, return_indices=True)
        ranks[at] = place[where] + 1

        names, codes = user_codes(wanted // self.n_items)
        values = _user_values(codes, names.size, ranks, self.k)
        self._sums = [total + fixed_sum(value) for total, value in zip(self._sums, values, strict=True)]
        self._users += names.size
        self._positives += wanted.size
        return lists

    def report(self) -> dict[str, float | int | None]:
        """What `ranking_report` says, with ``coverage`` and ``seen_positives``.

        ``coverage@k`` is the share of the catalogue in the list of any user; ``seen_positives`` counts
        positives left out since the user had seen the item.
        """
        report = _means(self._sums, self._users, self._positives, self.k)
        return report | {
            f"coverage@{self.k}": int(self.recommended.sum()) / self.n_items,
            "seen_positives": self._dropped,
        }
