"""Who is open, who is private, who is cold: draws that depend on a user's id and the seed alone."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from fedpa.data.source import FeatureDivision
from fedpa.errors import DataError

__all__ = [
    "COLD",
    "OPEN",
    "OPEN_SHARE",
    "PRIVATE",
    "SIDES",
    "at_random",
    "by_feature",
    "by_file",
    "draw",
    "make_cold",
    "uniform",
]

SIDES = ("open", "private", "cold")
"""Sides of users; the position of a name is its code."""

OPEN, PRIVATE, COLD = 0, 1, 2

OPEN_SHARE = 0.5
"""Share of open users when users are divided at random."""

_SHARE_IN, _SHARE_OUT = 0.8, 0.2
_FORM = "write a CSV with the columns user_id and side, one row per user, side open or private"


def uniform(ids: pl.Series, purpose: str, seed: int) -> NDArray[np.float64]:
    """One number in [0, 1) per user: a hash of the seed, the purpose and the user's id.

    Parameters
    ----------
    ids : polars.Series
        User ids, Int64 or String.
    purpose : str
        Draws for different purposes are independent of each other.
    seed : int

    Returns
    -------
    ndarray of float64, shape ``[len(ids)]``
    """
    key = int.from_bytes(hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=8).digest(), "little")
    if ids.dtype == pl.String:
        digests = b"".join(hashlib.blake2b(text.encode(), digest_size=8).digest() for text in ids)
        state = np.frombuffer(digests, dtype="<u8").astype(np.uint64)
    else:
        state = _mix(ids.to_numpy().astype(np.int64).view(np.uint64))
    numbers: NDArray[np.float64] = (_mix(state ^ np.uint64(key)) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return numbers


def draw(ids: pl.Series, share: float | NDArray[np.float64], purpose: str, seed: int) -> NDArray[np.bool_]:
    """Choose users, each with probability `share`; at least one is chosen and one left, if there are two.

    Only that last rule, which takes the lowest or leaves the highest draw, makes a user depend on others.
    """
    numbers = uniform(ids, purpose, seed)
    chosen: NDArray[np.bool_] = numbers < share
    if len(ids) > 1 and np.any(np.asarray(share) > 0):
        if not chosen.any():
            chosen[np.argmin(numbers)] = True
        elif chosen.all():
            chosen[np.argmax(numbers)] = False
    return chosen


def by_feature(ids: pl.Series, values: pl.Series, division: FeatureDivision, seed: int) -> NDArray[np.int8]:
    """Divide by a feature as published: 80% of the users with a listed value are open, 20% of the others.

    Parameters
    ----------
    ids : polars.Series
        User ids, shape ``[n]``.
    values : polars.Series
        The feature of each user, in the same order.
    division : FeatureDivision
    seed : int

    Returns
    -------
    ndarray of int8, shape ``[n]``
        `OPEN` or `PRIVATE`.
    """
    listed = values.cast(pl.String).is_in(list(division.values)).fill_null(value=False).to_numpy()
    return _sides(draw(ids, np.where(listed, _SHARE_IN, _SHARE_OUT), "open", seed))


def at_random(ids: pl.Series, seed: int) -> NDArray[np.int8]:
    """Divide at random: half of the users are open. Shape ``[len(ids)]``."""
    return _sides(draw(ids, OPEN_SHARE, "open", seed))


def by_file(ids: pl.Series, path: Path) -> NDArray[np.int8]:
    """Divide as a CSV file with the columns ``user_id`` and ``side`` says.

    Parameters
    ----------
    ids : polars.Series
        User ids, Int64 or String, shape ``[n]``.
    path : Path

    Returns
    -------
    ndarray of int8, shape ``[n]``
        `OPEN`, `PRIVATE`, or -1 for a user whom the file does not name.

    Raises
    ------
    DataError
        If the file cannot be read, names a user twice, or holds another side or an id of another type.
    """
    try:
        table = pl.read_csv(path, infer_schema=False)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(f"{path}: cannot read the division of users ({error})", _FORM) from error
    if missing := [name for name in ("user_id", "side") if name not in table.columns]:
        found = ", ".join(table.columns)
        raise DataError(f"{path}: column {missing[0]!r} is missing, found {found}", _FORM)
    table = table.select("user_id", "side").with_row_index("line", offset=2)
    strange = table.filter(~pl.col("side").is_in(["open", "private"]).fill_null(value=False))
    if len(strange):
        line, user, side = strange.row(0)
        raise DataError(f"{path}, line {line}: user {user} has side {side!r}, expected open or private", _FORM)
    keys = table.with_columns(pl.col("user_id").cast(ids.dtype, strict=False).alias("key"))
    unreadable = keys.filter(pl.col("key").is_null())
    if len(unreadable):
        line, user = unreadable.row(0)[:2]
        raise DataError(f"{path}, line {line}: user_id {user!r} does not read as {ids.dtype}, as in the log", _FORM)
    twice = keys.filter(~pl.col("key").is_first_distinct())
    if len(twice):
        line, user = twice.row(0)[:2]
        raise DataError(f"{path}, line {line}: user {user} is named a second time", _FORM)
    named = keys.select("key", code=pl.when(pl.col("side") == "open").then(OPEN).otherwise(PRIVATE))
    joined = ids.rename("key").to_frame().join(named, on="key", how="left", maintain_order="left")
    return joined.get_column("code").fill_null(-1).cast(pl.Int8).to_numpy()


def make_cold(ids: pl.Series, side: NDArray[np.int8], share: float, seed: int) -> NDArray[np.int8]:
    """Turn a drawn share of the private users into cold ones, whose rows no training sees."""
    if share <= 0.0:
        return side
    private = np.flatnonzero(side == PRIVATE)
    chosen = draw(ids.gather(private), share, "cold", seed)
    changed = side.copy()
    changed[private[chosen]] = COLD
    return changed


def _sides(is_open: NDArray[np.bool_]) -> NDArray[np.int8]:
    return np.where(is_open, OPEN, PRIVATE).astype(np.int8)


def _mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Splitmix64: a bijection whose output bits all depend on all input bits."""
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
