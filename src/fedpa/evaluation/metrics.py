"""Click metrics, pooled and per user, whose values do not depend on the order of rows.

Wins are counted in integers and sums are taken in fixed point (multiples of 2^-40), so the same rows in
another order, or spread over other shards, give the same value to the last bit.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from fedpa.errors import FedpaError

__all__ = [
    "CLIP",
    "FIXED_ONE",
    "Gauc",
    "UserAuc",
    "UserTally",
    "auc",
    "calibration_ratio",
    "check_rows",
    "entropy",
    "fixed_sum",
    "gauc",
    "log_loss",
    "normalised_entropy",
    "row_log_loss",
    "tally_rows",
    "user_auc",
    "user_codes",
    "user_tally",
    "worse_off_share",
    "worst_tenth_lift",
]

CLIP = 1e-7
"""Probabilities are clipped to [CLIP, 1 - CLIP] before their logarithm is taken."""

FIXED_ONE = 1 << 40
"""One, in the fixed point that sums are taken in."""

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class Gauc(NamedTuple):
    """GAUC with what it rests on.

    Attributes
    ----------
    value : float or None
        ``sum(rows_u * AUC_u) / sum(rows_u)`` over users with both classes; ``None`` without such a user.
    users, rows : int
        Users with both classes, and their rows.
    """

    value: float | None
    users: int
    rows: int


class UserAuc(NamedTuple):
    """The AUC of every user with both classes, in ascending order of user.

    Attributes
    ----------
    users : array [users_with_both]
    auc : float64 array [users_with_both]
    rows : int64 array [users_with_both]
        All rows of the user.
    """

    users: npt.NDArray[Any]
    auc: Floats
    rows: Ints


class UserTally(NamedTuple):
    """Counts per user, in ascending order of user, from which AUCs follow.

    Attributes
    ----------
    users : array [users]
    clicks, others : int64 array [users]
        Rows with label 1 and with label 0.
    wins : int64 array [users]
        Over the user's (click, other) pairs: 2 for a click scored above the other, 1 for a tie.
    """

    users: npt.NDArray[Any]
    clicks: Ints
    others: Ints
    wins: Ints

    def both(self) -> tuple[npt.NDArray[np.bool_], Floats, Ints]:
        """Which users have both classes (bool [users]), and of those their AUCs and their rows."""
        both = (self.clicks > 0) & (self.others > 0)
        clicks, others = self.clicks[both], self.others[both]
        return both, self.wins[both] / (2 * clicks * others), clicks + others


def check_rows(
    labels: npt.ArrayLike,
    scores: npt.ArrayLike,
    users: npt.ArrayLike | None = None,
    *,
    probabilities: bool = False,
) -> tuple[Ints, Floats, npt.NDArray[Any]]:
    """Check rows and bring them to common types.

    Parameters
    ----------
    labels : array [rows]
        0 or 1 (or booleans).
    scores : array [rows]
        Finite; higher means a likelier click.
    users : array [rows], optional
        Any sortable identifiers. Left out: one user.
    probabilities : bool
        Whether scores must lie in [0, 1].

    Returns
    -------
    labels, scores, users : int64, float64 and any array [rows]

    Raises
    ------
    FedpaError
        Where lengths differ, a label is neither 0 nor 1, or a score is not finite or not a probability.
    """
    raw = np.asarray(labels)
    s = np.asarray(scores, dtype=np.float64)
    u = np.zeros(raw.shape, dtype=np.int64) if users is None else np.asarray(users)
    if raw.ndim != 1 or raw.shape != s.shape or raw.shape != u.shape:
        raise FedpaError(
            f"labels, scores and users must be one-dimensional and equally long, "
            f"got shapes {raw.shape}, {s.shape} and {u.shape}"
        )
    ones = raw == 1
    wrong = raw.size - int(np.count_nonzero(ones)) - int(np.count_nonzero(raw == 0))
    if wrong:
        raise FedpaError(f"{wrong} of {raw.size} labels are neither 0 nor 1")
    bad = s.size - int(np.count_nonzero(np.isfinite(s)))
    if bad:
        raise FedpaError(
            f"{bad} of {s.size} scores are not finite ({int(np.isnan(s).sum())} NaN)",
            "Check that training did not diverge; a lower learning rate often helps.",
        )
    if probabilities:
        outside = int(np.count_nonzero((s < 0) | (s > 1)))
        if outside:
            raise FedpaError(
                f"{outside} of {s.size} scores are outside [0, 1], but this metric needs probabilities",
                "Apply a sigmoid to the scores.",
            )
    return ones.astype(np.int64), s, u


def fixed_sum(values: Floats) -> int:
    """Sum of `values` in units of 2^-40, each rounded on its own: exact in any order and grouping.

    Values are below 2^50 in size.
    """
    scaled = np.rint(values * float(FIXED_ONE))
    high = np.floor(scaled * 2.0**-32)
    low = scaled - high * 2.0**32
    return (int(high.astype(np.int64).sum()) << 32) + int(low.astype(np.int64).sum())


def user_codes(users: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], Ints]:
    """Distinct users in ascending order, and every row's position among them.

    Takes linear time where `users` is non-decreasing or holds integers of a narrow range, else one sort.
    """
    if users.size == 0:
        return users, np.zeros(0, dtype=np.int64)
    change = users[1:] != users[:-1]
    if np.all(users[1:] >= users[:-1]):
        codes = np.zeros(users.size, dtype=np.int64)
        np.cumsum(change, out=codes[1:])
        return users[np.concatenate(([0], np.flatnonzero(change) + 1))], codes
    if np.issubdtype(users.dtype, np.integer):
        low = int(users.min())
        width = int(users.max()) - low + 1
        if width <= 4 * users.size + 1024:
            wide = users if users.dtype == np.uint64 else users.astype(np.int64)  # int8 would wrap around
            offset = (wide - wide.dtype.type(low)).astype(np.int64)
            present = np.zeros(width, dtype=np.bool_)
            present[offset] = True
            names = (np.flatnonzero(present).astype(wide.dtype) + wide.dtype.type(low)).astype(users.dtype)
            return names, (np.cumsum(present) - 1)[offset]
    names, inverse = np.unique(users, return_inverse=True)
    return names, inverse.astype(np.int64).reshape(-1)


def _ranks(scores: Floats, free_bits: int) -> tuple[Ints, int]:
    """Non-negative integers in the order of `scores`, equal where scores are equal, and their width in bits.

    Single-precision scores, and probabilities where there is one user, are ranked by their own bits,
    without a sort.
    """
    if free_bits >= 62 and scores.min() >= 0 and scores.max() < 2:
        return (scores + 0.0).view(np.int64), 62  # -0.0 becomes 0.0
    with np.errstate(over="ignore"):
        narrow = scores.astype(np.float32)
    narrow += np.float32(0)
    if free_bits >= 32 and np.array_equal(narrow, scores):
        bits = narrow.view(np.int32)
        if bits.min() < 0:
            return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).astype(np.int64) + (1 << 31), 32
        return bits.astype(np.int64), 31
    order = np.argsort(scores)
    ranked = scores[order]
    steps = np.zeros(scores.size, dtype=np.int64)
    np.cumsum(ranked[1:] != ranked[:-1], out=steps[1:])
    ranks = np.empty_like(steps)
    ranks[order] = steps
    return ranks, int(steps[-1]).bit_length()


def _wins(codes: Ints, n_users: int, labels: Ints, scores: Floats) -> tuple[Ints, Ints, Ints]:
    """Clicks, others and doubled wins per user, from one sort of (user, rank of score, label).

    Within a tie the others come first, so a click wins over every other before it: with the clicks at places
    ``p_1 < ... < p_n`` of their user, that is ``sum(p_j) - (0 + 1 + ... + n - 1)`` others. Every tie of
    both classes then gives back one half for each of its pairs. Memory is reused, since fresh pages cost
    more than the arithmetic.
    """
    key, bits = _ranks(scores, 62 - (n_users - 1).bit_length())
    key <<= 1
    key |= labels
    if n_users > 1:
        key |= codes << (bits + 1)
    key.sort()
    step = key[1:] - key[:-1]
    mixed = np.flatnonzero(step == 1) + 1
    mixed = mixed[key[mixed] & 1 == 1]  # the first click of every tie that holds both classes
    value = key[mixed]
    tied = (np.searchsorted(key, value, side="right") - mixed) * (mixed - np.searchsorted(key, value - 1))
    size = np.bincount(codes, minlength=n_users) if n_users > 1 else np.array([key.size])
    start = np.cumsum(size) - size
    key &= 1
    clicks = np.add.reduceat(key, start)
    key *= np.arange(key.size)
    wins = 2 * (np.add.reduceat(key, start) - clicks * start) - clicks * (clicks - 1)
    np.subtract.at(wins, value >> (bits + 1), tied)
    return clicks, size - clicks, wins


def user_tally(users: npt.ArrayLike, labels: npt.ArrayLike, scores: npt.ArrayLike) -> UserTally:
    """Clicks, others and won pairs of every user, counted exactly.

    Parameters
    ----------
    users, labels, scores : array [rows]
        As in `check_rows`.

    Returns
    -------
    UserTally
    """
    y, s, u = check_rows(labels, scores, users)
    return tally_rows(*user_codes(u), y, s)


def tally_rows(names: npt.NDArray[Any], codes: Ints, labels: Ints, scores: Floats) -> UserTally:
    """`user_tally` of rows that `check_rows` and `user_codes` have seen to."""
    if labels.size == 0:
        none = np.zeros(0, dtype=np.int64)
        return UserTally(names, none, none, none)
    return UserTally(names, *_wins(codes, names.size, labels, scores))


def auc(labels: npt.ArrayLike, scores: npt.ArrayLike) -> float | None:
    """Share of (click, other) pairs in which the click is scored higher; a tie counts half.

    Parameters
    ----------
    labels : array [rows]
        0 or 1.
    scores : array [rows]
        Finite.

    Returns
    -------
    float or None
        ``None`` where one class is missing.
    """
    y, s, one = check_rows(labels, scores)
    if y.size == 0:
        return None
    clicks, others, wins = (int(part[0]) for part in _wins(one, 1, y, s))
    return wins / (2 * clicks * others) if clicks and others else None


def user_auc(users: npt.ArrayLike, labels: npt.ArrayLike, scores: npt.ArrayLike) -> UserAuc:
    """AUC of every user with both classes.

    Parameters
    ----------
    users, labels, scores : array [rows]
        As in `check_rows`; fastest where `users` is non-decreasing.

    Returns
    -------
    UserAuc
        In ascending order of user; users with one class only are left out.
    """
    tally = user_tally(users, labels, scores)
    both, value, rows = tally.both()
    return UserAuc(tally.users[both], value, rows)


def gauc(users: npt.ArrayLike, labels: npt.ArrayLike, scores: npt.ArrayLike) -> Gauc:
    """Per-user AUC weighted by the user's rows, over users with both classes.

    Parameters
    ----------
    users, labels, scores : array [rows]
        As in `check_rows`; fastest where `users` is non-decreasing.

    Returns
    -------
    Gauc
    """
    _, value, rows = user_auc(users, labels, scores)
    total = int(rows.sum())
    if total == 0:
        return Gauc(None, 0, 0)
    return Gauc(fixed_sum(value * rows) / (total * FIXED_ONE), rows.size, total)


def row_log_loss(labels: Ints, scores: Floats) -> Floats:
    """Natural-log loss of every row, clipped at `CLIP` and rounded to a multiple of 2^-40."""
    p = np.clip(scores, CLIP, 1 - CLIP)
    loss = -np.log(np.where(labels == 1, p, 1 - p))
    rounded: Floats = np.rint(loss * FIXED_ONE) / FIXED_ONE
    return rounded


def log_loss(labels: npt.ArrayLike, scores: npt.ArrayLike) -> float | None:
    """Mean negative log-likelihood, in nats a row.

    Parameters
    ----------
    labels : array [rows]
        0 or 1.
    scores : array [rows]
        Probabilities; clipped to [1e-7, 1 - 1e-7], so one row costs at most 16.12.

    Returns
    -------
    float or None
        ``None`` where there are no rows.
    """
    y, s, _ = check_rows(labels, scores, probabilities=True)
    return fixed_sum(row_log_loss(y, s)) / (y.size * FIXED_ONE) if y.size else None


def entropy(clicks: int, rows: int) -> float | None:
    """Entropy in nats of a constant click rate; ``None`` where one class is missing."""
    if clicks in (0, rows):
        return None
    rate = clicks / rows
    return float(-(rate * np.log(rate) + (1 - rate) * np.log1p(-rate)))


def normalised_entropy(labels: npt.ArrayLike, scores: npt.ArrayLike) -> float | None:
    """Log-loss divided by the log-loss of always predicting the click rate of these rows; below 1 is better.

    See He et al., *Practical Lessons from Predicting Clicks on Ads at Facebook*, ADKDD 2014, section 2.

    Returns
    -------
    float or None
        ``None`` where one class is missing.
    """
    loss = log_loss(labels, scores)
    base = entropy(int(np.count_nonzero(np.asarray(labels))), np.size(labels))
    return None if loss is None or base is None else loss / base


def calibration_ratio(labels: npt.ArrayLike, scores: npt.ArrayLike) -> float | None:
    """Clicks predicted (sum of scores) over clicks observed: 1 is calibrated, ``None`` without a click."""
    y, s, _ = check_rows(labels, scores, probabilities=True)
    clicks = int(y.sum())
    return fixed_sum(s) / (clicks * FIXED_ONE) if clicks else None


def worse_off_share(
    users: npt.ArrayLike,
    labels: npt.ArrayLike,
    scores: npt.ArrayLike,
    baseline_scores: npt.ArrayLike,
    *,
    by: Literal["auc", "log_loss"] = "auc",
) -> float | None:
    """Share of users whom `scores` serve worse than `baseline_scores` do.

    Parameters
    ----------
    users, labels, scores, baseline_scores : array [rows]
    by : {"auc", "log_loss"}
        ``"auc"``: of users with both classes, those whose AUC is lower (equal is not worse).
        ``"log_loss"``: of all users, those whose log-loss is higher; needs probabilities.

    Returns
    -------
    float or None
        ``None`` where no user can be compared.
    """
    if by == "auc":
        gain = _auc_gain(users, labels, scores, baseline_scores)
        return int((gain < 0).sum()) / gain.size if gain.size else None
    y, s, u = check_rows(labels, scores, users, probabilities=True)
    _, base, _ = check_rows(labels, baseline_scores, users, probabilities=True)
    names, codes = user_codes(u)
    if not names.size:
        return None
    change = np.bincount(codes, weights=row_log_loss(y, s) - row_log_loss(y, base))
    return int((change > 0).sum()) / names.size


def worst_tenth_lift(
    users: npt.ArrayLike, labels: npt.ArrayLike, scores: npt.ArrayLike, baseline_scores: npt.ArrayLike
) -> float | None:
    """Mean AUC gain over the baseline of the tenth of users who gain least.

    Over users with both classes; the tenth is rounded up, so it is never empty. A negative value means that
    the tenth whom `scores` serve worst lose by it.

    Returns
    -------
    float or None
        ``None`` where no user has both classes.
    """
    gain = np.sort(_auc_gain(users, labels, scores, baseline_scores))
    worst = gain[: -(-gain.size // 10)]
    return fixed_sum(worst) / (worst.size * FIXED_ONE) if worst.size else None


def _auc_gain(
    users: npt.ArrayLike, labels: npt.ArrayLike, scores: npt.ArrayLike, baseline_scores: npt.ArrayLike
) -> Floats:
    """AUC with `scores` minus AUC with `baseline_scores`, of every user with both classes."""
    return user_auc(users, labels, scores).auc - user_auc(users, labels, baseline_scores).auc
