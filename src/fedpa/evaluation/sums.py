"""Evaluation over shards: sums that add up to exactly what one machine would have computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fedpa.evaluation.metrics import (
    FIXED_ONE,
    Floats,
    Ints,
    check_rows,
    entropy,
    fixed_sum,
    row_log_loss,
    tally_rows,
    user_codes,
)

__all__ = ["BINS", "ClickSums"]

BINS = 10_000
"""Score bins, equally spaced in probability."""


@dataclass(frozen=True, eq=False)
class ClickSums:
    """What a shard reports about its rows: integers only, so sums are the same in any order and grouping.

    All rows of a user must be in one shard. Fields whose unit is 2^-40 are integers of that fixed point.

    Attributes
    ----------
    rows, clicks, users : int
    gauc_sum : int
        AUC times rows, over users with both classes; unit 2^-40.
    gauc_users, gauc_rows : int
        Users with both classes, and their rows.
    log_loss_sum, predicted_sum : int
        Log-loss in nats, and scores, over rows; unit 2^-40.
    histogram : int64 array [2, BINS]
        Rows by label and score bin.
    """

    rows: int
    clicks: int
    users: int
    gauc_sum: int
    gauc_users: int
    gauc_rows: int
    log_loss_sum: int
    predicted_sum: int
    histogram: Ints

    @classmethod
    def of(cls, users: npt.ArrayLike, labels: npt.ArrayLike, scores: npt.ArrayLike) -> ClickSums:
        """Sums over some users' rows.

        Parameters
        ----------
        users, labels, scores : array [rows]
            As in `metrics.check_rows`; scores are probabilities. No rows at all: zeros.

        Raises
        ------
        FedpaError
            As `metrics.check_rows`.
        """
        y, s, u = check_rows(labels, scores, users, probabilities=True)
        return cls._of_codes(*user_codes(u), y, s)

    @classmethod
    def _of_codes(cls, names: npt.NDArray[Any], codes: Ints, y: Ints, s: Floats) -> ClickSums:
        tally = tally_rows(names, codes, y, s)
        _, value, user_rows = tally.both()
        cell = np.minimum((s * BINS).astype(np.int64), BINS - 1) + BINS * y
        return cls(
            rows=y.size,
            clicks=int(y.sum()),
            users=names.size,
            gauc_sum=fixed_sum(value * user_rows),
            gauc_users=value.size,
            gauc_rows=int(user_rows.sum()),
            log_loss_sum=fixed_sum(row_log_loss(y, s)),
            predicted_sum=fixed_sum(s),
            histogram=np.bincount(cell, minlength=2 * BINS).reshape(2, BINS),
        )

    @classmethod
    def zero(cls) -> ClickSums:
        """Sums over no rows: the start of a sum over shards."""
        return cls(0, 0, 0, 0, 0, 0, 0, 0, np.zeros((2, BINS), dtype=np.int64))

    def __add__(self, other: ClickSums) -> ClickSums:
        return ClickSums(
            self.rows + other.rows,
            self.clicks + other.clicks,
            self.users + other.users,
            self.gauc_sum + other.gauc_sum,
            self.gauc_users + other.gauc_users,
            self.gauc_rows + other.gauc_rows,
            self.log_loss_sum + other.log_loss_sum,
            self.predicted_sum + other.predicted_sum,
            self.histogram + other.histogram,
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ClickSums):
            return NotImplemented
        return self._integers() == other._integers() and np.array_equal(self.histogram, other.histogram)

    def __hash__(self) -> int:
        return hash((self._integers(), self.histogram.tobytes()))

    def _integers(self) -> tuple[int, ...]:
        return (
            self.rows,
            self.clicks,
            self.users,
            self.gauc_sum,
            self.gauc_users,
            self.gauc_rows,
            self.log_loss_sum,
            self.predicted_sum,
        )

    def auc(self) -> tuple[float | None, float | None]:
        """Pooled AUC from the histogram, and how far at most it is from the exact one.

        Pairs in the same bin count half, so the error is at most half the share of such pairs.

        Returns
        -------
        value, error : float or None
            ``None`` where one class is missing.
        """
        others, clicks = self.histogram
        pairs = self.clicks * (self.rows - self.clicks)
        if not pairs:
            return None, None
        filled = np.flatnonzero(clicks)
        below, others, clicks = (np.cumsum(others) - others)[filled], others[filled], clicks[filled]
        # Python integers: pair counts of many millions of rows pass 2^63.
        same = sum(a * b for a, b in zip(clicks.tolist(), others.tolist(), strict=True))
        won = sum(a * b for a, b in zip(clicks.tolist(), below.tolist(), strict=True))
        return (2 * won + same) / (2 * pairs), same / (2 * pairs)

    def report(self) -> dict[str, float | int | None]:
        """Metrics of all rows, ready for JSON; ``None`` where a metric is undefined.

        ``gauc``, ``logloss``, ``normalised_entropy`` and ``calibration_ratio`` equal those of `metrics` to
        the last bit. ``auc`` is within ``auc_error`` of the exact value.
        """
        auc, error = self.auc()
        loss = self.log_loss_sum / (self.rows * FIXED_ONE) if self.rows else None
        base = entropy(self.clicks, self.rows)
        return {
            "gauc": self.gauc_sum / (self.gauc_rows * FIXED_ONE) if self.gauc_rows else None,
            "gauc_users": self.gauc_users,
            "gauc_rows": self.gauc_rows,
            "auc": auc,
            "auc_error": error,
            "logloss": loss,
            "normalised_entropy": None if loss is None or base is None else loss / base,
            "calibration_ratio": self.predicted_sum / (self.clicks * FIXED_ONE) if self.clicks else None,
            "rows": self.rows,
            "users": self.users,
            "click_rate": self.clicks / self.rows if self.rows else None,
        }
