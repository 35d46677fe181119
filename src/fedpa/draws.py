"""Random draws as functions of (seed, purpose, round, user), never of a sequential generator.

A draw therefore does not depend on which other users take part, on their order, or on how they are divided
into chunks and shards. The hash is SplitMix64 (Steele, Lea & Flood, OOPSLA 2014), whose finaliser passes
the usual statistical batteries; it is not a cryptographic generator and is not used as one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

__all__ = ["derive_seed", "generator", "uniform", "user_keys"]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def user_keys(ids: pl.Series) -> npt.NDArray[np.uint64]:
    """One 64-bit key per user id: integers as they are, strings by BLAKE2b.

    Parameters
    ----------
    ids : polars.Series
        Integer or string ids [users].

    Returns
    -------
    numpy.ndarray
        Keys [users], uint64.
    """
    if ids.dtype.is_integer():
        return ids.cast(pl.Int64).to_numpy().view(np.uint64)
    digests = (hashlib.blake2b(str(i).encode(), digest_size=8).digest() for i in ids)
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)


def derive_seed(seed: int, purpose: str, *numbers: int) -> int:
    """A 63-bit seed for one purpose, so that purposes never share a stream."""
    text = "/".join([str(seed), purpose, *map(str, numbers)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(seed: int, purpose: str, *numbers: int) -> torch.Generator:
    """A PyTorch generator for draws that belong to no user, such as the start of a LoRA factor."""
    return torch.Generator().manual_seed(derive_seed(seed, purpose, *numbers))


def uniform(seed: int, purpose: str, numbers: Sequence[int], keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.float64]:
    """Uniform draws in [0, 1), one per key.

    Parameters
    ----------
    seed : int
        The run's seed.
    purpose : str
        What the draw decides, for instance ``"participate"``.
    numbers : sequence of int
        The round and whatever else tells draws of one purpose apart.
    keys : numpy.ndarray
        uint64 keys, any shape; see `user_keys`.
    """
    start = np.uint64(derive_seed(seed, purpose, *numbers))
    bits = _mix(_mix(keys ^ start) + start)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    x = x + _GOLDEN
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
