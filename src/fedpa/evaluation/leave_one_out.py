"""Where each private user's left-out item ranks in the whole catalogue."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fedpa.data.dataset import Dataset, Part
from fedpa.data.leave_one_out import pair_keys, seen_items
from fedpa.draws import uniform
from fedpa.errors import ConfigError, DataError, FedpaError
from fedpa.evaluation.metrics import FIXED_ONE, Floats, Ints, fixed_sum
from fedpa.federation.rows import ShardRows

__all__ = ["LeaveOneOut", "Places", "Score", "leave_one_out_report"]

Score = Callable[[Ints], Any]
"""From test rows (positions in the shard's rows [users]) to scores of the whole catalogue [users, items]."""

_BLOCK_SCORES = 1 << 17


@dataclass(frozen=True)
class Places:
    """How many candidates are scored above each user's item, and how many the same.

    Attributes
    ----------
    above, tied : int64 array [users]
    candidates : int64 array [users]
        The user's item itself included.
    """

    above: Ints
    tied: Ints
    candidates: Ints

    @property
    def rank(self) -> Floats:
        """Mean rank over all orders of the tied ones, from 1, float64 [users]."""
        return 1.0 + self.above + self.tied / 2

    def hr(self, k: int) -> Floats:
        """Chance that the item is in the top k when ties are broken at random, float64 [users]."""
        inside: Floats = np.clip(k - self.above, 0, self.tied + 1) / (self.tied + 1)
        return inside

    def ndcg(self, k: int) -> Floats:
        """Mean of ``1 / log2(1 + rank)`` in the top k, 0 below it, when ties are broken at random, float64 [users]."""
        gains = np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(2, k + 2)))])
        first, last = (np.minimum(end, k) for end in (self.above, self.above + self.tied + 1))
        gained: Floats = (gains[last] - gains[first]) / (self.tied + 1)
        return gained


@dataclass(frozen=True)
class LeaveOneOut:
    """Ranks of left-out items, one per user, in ascending order of user.

    Attributes
    ----------
    users : int64 array [users]
        User numbers of the data set.
    places : Places
        Among the whole catalogue without the user's training and validation positives.
    sampled_places : Places
        Among the user's item and `sampled` drawn ones that are no positive of the user.
    seen_in_training : bool array [users]
        Whether the item has a positive among the training or foundation rows.
    k, sampled : int
    n_items : int
        Size of the catalogue.
    left_out : dict of str to int
        Users who are not judged, by reason, as the data set's manifest says.
    test_users : int
        Users who could have been ranked; more than ``len(users)`` where only some were drawn.
    """

    users: Ints
    places: Places
    sampled_places: Places
    seen_in_training: npt.NDArray[np.bool_]
    k: int
    sampled: int
    n_items: int
    left_out: dict[str, int]
    test_users: int

    @property
    def rank(self) -> Floats:
        """Rank among the whole catalogue, float64 [users]; a tie counts half."""
        return self.places.rank

    @property
    def sampled_rank(self) -> Floats:
        """Rank among the drawn items, float64 [users]; a tie counts half."""
        return self.sampled_places.rank

    @property
    def hr(self) -> Floats:
        """HR@k of every user, float64 [users]; between 0 and 1 where ties cross the k-th place."""
        return self.places.hr(self.k)

    @property
    def ndcg(self) -> Floats:
        """NDCG@k of every user, float64 [users]."""
        return self.places.ndcg(self.k)

    @property
    def sampled_hr(self) -> Floats:
        """HR@k among the drawn items, float64 [users]."""
        return self.sampled_places.hr(self.k)

    @property
    def sampled_ndcg(self) -> Floats:
        """NDCG@k among the drawn items, float64 [users]."""
        return self.sampled_places.ndcg(self.k)

    def report(self) -> dict[str, Any]:
        """Means over users, ready for JSON.

        Returns
        -------
        dict
            ``hr@k`` and ``ndcg@k`` over the whole catalogue; ``hr@k_sampledN`` and ``ndcg@k_sampledN`` against N drawn
            items, for comparison with published tables only: such figures need not order methods as the whole
            catalogue does (Krichene & Rendle, *On Sampled Metrics for Item Recommendation*, KDD 2020). ``None``
            without users. ``unseen`` holds the same for users whose item has no training or foundation positive;
            ``users``, ``test_users``, ``catalogue`` and ``left_out`` say what the means are over.
        """
        unseen = ~self.seen_in_training
        return self._means(np.ones_like(unseen)) | {
            "unseen": self._means(unseen),
            "test_users": self.test_users,
            "catalogue": self.n_items,
            "left_out": dict(self.left_out),
        }

    def _means(self, chosen: npt.NDArray[np.bool_]) -> dict[str, float | int | None]:
        users = int(chosen.sum())
        named = {
            f"hr@{self.k}": self.hr,
            f"ndcg@{self.k}": self.ndcg,
            f"hr@{self.k}_sampled{self.sampled}": self.sampled_hr,
            f"ndcg@{self.k}_sampled{self.sampled}": self.sampled_ndcg,
        }
        means: dict[str, float | int | None] = {
            name: fixed_sum(values[chosen]) / (users * FIXED_ONE) if users else None for name, values in named.items()
        }
        return means | {"users": users}


def leave_one_out_report(
    dataset: Dataset,
    rows: ShardRows,
    score: Score,
    *,
    k: int = 10,
    sampled: int = 99,
    seed: int = 0,
    most: int | None = None,
) -> LeaveOneOut:
    """Rank every user's test positive among all items but the user's training and validation positives.

    Beside it stands the field's figure, against `sampled` items drawn, without repetition, from those of which the user
    has no training, validation or test positive (all of them where there are fewer). A tie counts half of a rank, and
    HR and NDCG are means over all orders of the tied: a scorer that scores all items the same is at chance exactly,
    ``HR@k = k / candidates``, whatever the numbers of the items.

    Parameters
    ----------
    dataset : Dataset
        As `fedpa.data.leave_one_out.leave_one_out` makes it.
    rows : ShardRows
        Of all or some private users of `dataset`.
    score : callable
        Takes positions of test positives in `rows` [users] and returns finite scores of the whole catalogue
        [users, items] for their users at these rows.
    k : int
        Length of the list.
    sampled : int
        Number of drawn items.
    seed : int
        Of the draws of items, and of users where there are `most`.
    most : int, optional
        Rank for this many users only, chosen by a draw.

    Returns
    -------
    LeaveOneOut

    Raises
    ------
    ConfigError
        If `k`, `sampled` or `most` is below 1.
    DataError
        If there is no test positive, or a user has more than one.
    FedpaError
        If scores are of another shape or not finite.
    """
    for name, value in (("k", k), ("sampled", sampled), ("most", most)):
        if value is not None and value < 1:
            raise ConfigError(f"{name}: found {value}, expected 1 or more")
    clicked = rows.labels.detach().cpu().numpy() > 0
    test = _test_positions(dataset, rows, clicked)
    total = len(test)
    if most is not None and most < total:
        chance = uniform(seed, "leave-one-out/users", (), rows.keys[rows.user[test]])
        test = np.sort(test[np.argsort(chance, kind="stable")[:most]])
    item = rows.items.detach().cpu().numpy().astype(np.int64)
    known = _Known.of(rows, clicked & np.isin(rows.part, (Part.TRAIN, Part.VAL)), item)
    per_block = max(1, _BLOCK_SCORES // dataset.n_items)
    blocks = [test[begin : begin + per_block] for begin in range(0, len(test), per_block)]
    found = [_rank(block, rows, item[block], known, score, dataset.n_items, sampled, seed) for block in blocks]
    whole, drawn = (np.concatenate([pair[which] for pair in found], axis=1) for which in (0, 1))
    return LeaveOneOut(
        users=rows.users[rows.user[test]].astype(np.int64),
        places=Places(*whole),
        sampled_places=Places(*drawn),
        seen_in_training=seen_items(dataset)[item[test]],
        k=k,
        sampled=sampled,
        n_items=dataset.n_items,
        left_out=dict(dataset.manifest.get("counts", {}).get("left_out", {})),
        test_users=total,
    )


def _test_positions(dataset: Dataset, rows: ShardRows, clicked: npt.NDArray[np.bool_]) -> Ints:
    """Positions of the test positives, in ascending order of user."""
    test = np.flatnonzero(clicked & (rows.part == Part.TEST)).astype(np.int64)
    owner = rows.user[test]
    if not len(test):
        raise DataError(f"{dataset.path}: has no test positive", _MAKE)
    twice = np.flatnonzero(owner[1:] == owner[:-1])
    if len(twice):
        user = dataset.user_ids[int(rows.users[owner[twice[0]]])]
        raise DataError(f"{dataset.path}: user {user!r} has more than one test positive, expected one", _MAKE)
    return test


_MAKE = "make the top-k task with fedpa.data.leave_one_out.leave_one_out"


@dataclass(frozen=True)
class _Known:
    """Items of some of each user's rows: those of local user ``u`` are ``item[start[u] : start[u + 1]]``."""

    item: Ints
    start: Ints

    @classmethod
    def of(cls, rows: ShardRows, chosen: npt.NDArray[np.bool_], item: Ints) -> _Known:
        """The items of the chosen rows."""
        sizes = np.bincount(rows.user[chosen], minlength=len(rows.users))
        return cls(item[chosen], np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64))

    def mask(self, users: Ints, n_items: int) -> npt.NDArray[np.bool_]:
        """Which items are among them, bool [users, items]."""
        found = np.zeros((len(users), n_items), dtype=np.bool_)
        for place, user in enumerate(users):
            found[place, self.item[self.start[user] : self.start[user + 1]]] = True
        return found


def _rank(
    block: Ints,
    rows: ShardRows,
    item: Ints,
    known: _Known,
    score: Score,
    n_items: int,
    sampled: int,
    seed: int,
) -> tuple[Ints, Ints]:
    """Places in the whole catalogue and among drawn items, each [3, users of the block]."""
    scores = _checked(score(block), (len(block), n_items))
    users = rows.user[block]
    others = ~known.mask(users, n_items)
    others[np.arange(len(block)), item] = False
    own = scores[np.arange(len(block)), item][:, None]
    above, tied = scores > own, scores == own
    keys = pair_keys(rows.keys[users][:, None], np.arange(n_items, dtype=np.uint64)[None])
    chance = np.where(others, uniform(seed, "leave-one-out/sampled", (), keys), 1.0)
    width = min(sampled, n_items)
    picked = np.argpartition(chance, width - 1, axis=1)[:, :width]
    drawn = np.zeros_like(others)
    np.put_along_axis(drawn, picked, np.take_along_axis(others, picked, axis=1), axis=1)
    return _counted(above, tied, others), _counted(above, tied, drawn)


def _counted(above: npt.NDArray[np.bool_], tied: npt.NDArray[np.bool_], others: npt.NDArray[np.bool_]) -> Ints:
    return np.stack([(above & others).sum(1), (tied & others).sum(1), others.sum(1) + 1]).astype(np.int64)


def _checked(scores: Any, shape: tuple[int, int]) -> npt.NDArray[Any]:
    """Scores as an array; a torch tensor is taken off its device and graph."""
    detach = getattr(scores, "detach", None)
    array: npt.NDArray[Any] = np.asarray(detach().cpu().numpy() if detach is not None else scores)
    if array.shape != shape:
        raise FedpaError(f"score returned shape {array.shape}, expected [users, items] = {list(shape)}")
    bad = array.size - int(np.count_nonzero(np.isfinite(array)))
    if bad:
        raise FedpaError(
            f"{bad} of {array.size} scores are not finite ({int(np.isnan(array).sum())} NaN)",
            "check that training did not diverge; a lower learning rate often helps",
        )
    return array
