"""Which users and rows are trained together: dense blocks of users with equally long runs of rows.

A user's result must not depend on who is in its chunk. Two things would let it: kernels for vectors treat the last few
elements of a tensor otherwise than the rest (`VECTOR_ROWS`), and libraries for products of matrices pick kernels by
shape and address (see ``MKL_CBWR`` in `fedpa`; every user has products of its own, of one shape).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedpa.draws import uniform

__all__ = [
    "Chunk",
    "chunks",
    "padded_length",
    "participants",
    "row_block",
    "shuffled_rows",
    "steps_of",
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
    users: Ints, rows: Ints, *, batch_size: int | None, users_per_chunk: int, rows_per_chunk: int
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
    """
    users, rows = users[rows > 0], rows[rows > 0]
    steps = np.ones_like(rows) if batch_size is None else -(-rows // batch_size)
    width = padded_length(rows if batch_size is None else np.minimum(rows, batch_size))
    if batch_size is not None:
        width = np.minimum(width, batch_size)
    order = np.lexsort((users, width, steps))
    users, width, steps = users[order], width[order], steps[order]
    edges = np.flatnonzero((np.diff(width) != 0) | (np.diff(steps) != 0)) + 1
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


def steps_of(chunk: Chunk, epochs: int) -> Iterator[tuple[int, int]]:
    """Pairs (epoch, step) of one round."""
    return ((epoch, step) for epoch in range(epochs) for step in range(chunk.steps))
