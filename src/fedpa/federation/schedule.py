"""Which users and rows are trained together: dense blocks of users with equally long runs of rows.

A user's result must not depend on who is in its chunk. Two things would let it: kernels for vectors treat the last few
elements of a tensor otherwise than the rest (`VECTOR_ROWS`), and libraries for products of matrices pick kernels by
shape and address (see ``MKL_CBWR`` in `fedpa`; every user has products of its own, of one shape).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from fedpa.draws import uniform

__all__ = [
    "Chunk",
    "chunks",
    "halves",
    "local_part",
    "padded_length",
    "participants",
    "row_block",
    "shuffled_rows",
    "users_in_whole_vectors",
]

VECTOR_ROWS = 32
"""A chunk is filled up with copies of a user to a multiple of this many rows: the longest run of elements that a kernel
takes at once, so that none is left over."""

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Chunk:
    """Users who are trained or scored together.

    Attributes
    ----------
    users : ndarray
        User numbers [users], the last repeated to fill whole vectors.
    real : int
        How many of `users` are not such padding.
    width : int
        Padded rows per user and step.
    steps : int
        Local steps per epoch.
    """

    users: Ints
    real: int
    width: int
    steps: int


def padded_length(rows: Ints) -> Ints:
    """Rows rounded up to a ladder whose steps are an eighth of the next power of two; up to 8 rows, exact."""
    rows = np.maximum(rows, 1)
    step = np.maximum(1, 1 << np.maximum(0, np.ceil(np.log2(rows)).astype(np.int64) - 3))
    padded: Ints = -(-rows // step) * step
    return padded


def users_in_whole_vectors(width: int) -> int:
    """Fewest users whose rows fill whole vectors, two at least: a batched product of one takes another kernel."""
    return max(2, VECTOR_ROWS // math.gcd(VECTOR_ROWS, width))


def chunks(
    users: Ints,
    rows: Ints,
    *,
    batch_size: int | None,
    users_per_chunk: int,
    rows_per_chunk: int,
    train: Ints | None = None,
    train_batch: int = 1,
) -> list[Chunk]:
    """Sort users into chunks of equal width and number of steps.

    Parameters
    ----------
    users, rows : ndarray
        User numbers [users] and the number of rows of each; users without rows are left out.
    batch_size : int or None
        Rows per local step; None takes all rows in one.
    users_per_chunk, rows_per_chunk : int
        Limits of a chunk; at least one user is in it.
    train, train_batch : ndarray, int
        Where the users also train, their training rows [users] and the batch size: a chunk has users who train in
        blocks of one shape.
    """
    kept = rows > 0
    users, rows = users[kept], rows[kept]
    steps, width = _shape(rows, batch_size)
    keys = [steps, width]
    if train is not None:
        keys += _shape(train[kept], train_batch)
    order = np.lexsort((users, *reversed(keys)))
    users, width, steps = users[order], width[order], steps[order]
    edges = np.flatnonzero(np.any([np.diff(key[order]) != 0 for key in keys], axis=0)) + 1
    found = []
    for begin, end in zip([0, *edges], [*edges, len(users)], strict=True):
        if begin == end:
            continue
        w, s = int(width[begin]), int(steps[begin])
        whole = users_in_whole_vectors(w)
        most = max(1, min(users_per_chunk, rows_per_chunk // w))
        for first in range(begin, end, most):
            members = users[first : min(first + most, end)]
            real = len(members)
            found.append(Chunk(np.pad(members, (0, -real % whole), mode="edge"), real, w, s))
    return found


def _shape(rows: Ints, batch_size: int | None) -> tuple[Ints, Ints]:
    """Steps per epoch and padded rows per step."""
    if batch_size is None:
        return np.ones_like(rows), padded_length(rows)
    return -(-rows // batch_size), np.minimum(padded_length(np.minimum(rows, batch_size)), batch_size)


def row_block(chunk: Chunk, begin: Ints, count: Ints, step: int, batch_size: int | None) -> tuple[Ints, Ints]:
    """Positions of one step's rows in the users' runs, and how many are real.

    Returns
    -------
    positions : ndarray
        Absolute row positions [users, width]; padding repeats a row of the same user.
    real : ndarray
        Real rows of each user in this step [users].
    """
    offset = 0 if batch_size is None else step * batch_size
    real = np.clip(count - offset, 0, chunk.width)
    within = np.minimum(np.arange(chunk.width), np.maximum(real, 1)[:, None] - 1)
    return begin[:, None] + offset + within, real


def shuffled_rows(seed: int, round_number: int, epoch: int, keys: npt.NDArray[np.uint64], count: Ints) -> Ints:
    """A permutation of each user's rows, as offsets into its run [users, longest run].

    Each user's order is drawn from (seed, round, epoch, user) alone; entries past a user's count sort last.
    """
    longest = int(count.max())
    position = np.arange(longest, dtype=np.uint64)
    with np.errstate(over="ignore"):
        cell = keys[:, None] + (position + np.uint64(1)) * np.uint64(0xD1342543DE82EF95)
    draw = uniform(seed, "shuffle", (round_number, epoch), cell)
    draw[np.arange(longest) >= count[:, None]] = 2.0
    return np.argsort(draw, axis=1, kind="stable")


def participants(seed: int, round_number: int, share: float, users: Ints, keys: npt.NDArray[np.uint64]) -> Ints:
    """The users who take part in a round: each with probability `share`, independently."""
    if share >= 1.0:
        return users
    return users[uniform(seed, "participate", (round_number,), keys[users]) < share]


SUPPORT, QUERY = 1, 2
"""Bits of `halves`."""


def halves(seed: int, round_number: int, keys: npt.NDArray[np.uint64], count: Ints) -> npt.NDArray[np.int8]:
    """Support and query rows of each user, drawn anew in every round [users, longest run].

    The larger half is support; a user's only row is both.
    """
    order = shuffled_rows(seed, round_number, -1, keys, count)
    found = np.full(order.shape, QUERY, np.int8)
    first = np.where(np.arange(order.shape[1]) < -(-count // 2)[:, None], SUPPORT, QUERY).astype(np.int8)
    np.put_along_axis(found, order, first, axis=1)
    found[count == 1, 0] = SUPPORT | QUERY
    return found


def local_part(
    real: Ints, offsets: Ints, half: npt.NDArray[np.int8] | None, rows: Literal["all", "support", "query"]
) -> npt.NDArray[np.float64]:
    """Weights of one step's rows [users, width]: equal over the real rows of the wanted part, summing to one.

    Parameters
    ----------
    real : ndarray
        Real rows of each user in this step [users].
    offsets : ndarray
        Which row of its user's run each one is [users, width].
    half : ndarray or None
        As `halves` gives it.
    rows : {"all", "support", "query"}

    Returns
    -------
    ndarray
        All zero for a user none of whose rows in this step are wanted.
    """
    wanted = np.arange(offsets.shape[1]) < real[:, None]
    if half is not None and rows != "all":
        inside = np.take_along_axis(half, np.clip(offsets, 0, half.shape[1] - 1), axis=1)
        wanted &= (inside & (SUPPORT if rows == "support" else QUERY)) > 0
    total = wanted.sum(1)[:, None]
    return np.where(wanted, 1.0 / np.maximum(total, 1), 0.0)
