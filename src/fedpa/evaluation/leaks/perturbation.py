"""Whether a function of labels reads labels that it must not read: change them and see what moves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedpa.errors import DataError

__all__ = ["Labels", "moves_with_the_future"]

Labels = NDArray[np.int8]


def moves_with_the_future(
    build: Callable[[Labels], NDArray[Any]],
    label: Labels,
    time: NDArray[np.int64],
    *,
    hidden: NDArray[np.bool_] | None = None,
    draws: int = 16,
    seed: int = 0,
) -> NDArray[np.int64]:
    """Rows of what `build` returns that move when labels change which were not known at the row's time.

    In every draw an instant is chosen among the times of rows; a random half of the labels from that instant on is
    flipped, and rows up to and at the instant must stay equal. One more draw flips every label, one flips
    every hidden label.

    Parameters
    ----------
    build : callable
        Takes labels ``[n]`` and returns one row of inputs per row, shape ``[n, ...]``.
    label : ndarray of int8, shape ``[n]``
        0 or 1. It is copied, never changed.
    time : ndarray of int64, shape ``[n]``
    hidden : ndarray of bool, shape ``[n]``, optional
        Rows whose labels nobody may read, such as test rows: no row at all may move with them.
    draws : int
        Number of instants, 1 or more.
    seed : int
        Of the draws.

    Returns
    -------
    ndarray of int64
        Row numbers, ascending; empty if nothing that was tried moves anything. A dependence that needs one
        certain label to change can be missed: more draws find more.

    Raises
    ------
    DataError
        If the arrays have unequal lengths, labels are not 0 or 1, or `build` returns another number of rows.
    """
    n = len(label)
    if len(time) != n or (hidden is not None and len(hidden) != n):
        raise DataError(f"moves_with_the_future: found {n} labels and {len(time)} times, expected equal lengths")
    if not np.isin(label, (0, 1)).all():
        raise DataError("moves_with_the_future: found a label that is neither 0 nor 1")
    if not n:
        return np.zeros(0, dtype=np.int64)
    random = np.random.default_rng(seed)
    before = _built(build, label)
    moved = np.zeros(n, dtype=np.bool_)

    def flip(chosen: NDArray[np.bool_], watched: NDArray[np.bool_]) -> None:
        after = _built(build, np.where(chosen, 1 - label, label).astype(np.int8))
        # Bytes are compared, not numbers, so that a missing value equals itself.
        differs = np.array([one.tobytes() != two.tobytes() for one, two in zip(before, after, strict=True)])
        moved[watched & differs] = True

    instants = random.choice(time, size=max(1, draws))
    instants[0] = time.min()
    for place, instant in enumerate(instants):
        later = time >= instant
        flip(later if place == 0 else later & (random.random(n) < 0.5), time <= instant)
    if hidden is not None:
        flip(np.asarray(hidden, dtype=np.bool_), np.ones(n, dtype=np.bool_))
    return np.flatnonzero(moved).astype(np.int64)


def _built(build: Callable[[Labels], NDArray[Any]], label: Labels) -> NDArray[Any]:
    inputs = np.array(build(label.copy()))
    if inputs.ndim == 0 or len(inputs) != len(label):
        raise DataError(
            f"moves_with_the_future: build returned shape {inputs.shape} for {len(label)} labels",
            "return one row of inputs per label",
        )
    return inputs
