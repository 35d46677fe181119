"""Masks: streams of pseudo-random 64-bit integers, added modulo 2^64."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from fedpa.errors import ConfigError

__all__ = ["Words", "add_masks", "words"]

Words = npt.NDArray[np.uint64]

_PIECE = 1 << 14  # words: with the stream's own buffer they stay in a core's cache
_WORD = np.dtype("<u8")


def words(values: npt.NDArray[np.int64]) -> Words:
    """Signed integers as a fresh vector in the ring of integers modulo 2^64; the same bits [size]."""
    return np.array(values, dtype=np.int64, order="C").reshape(-1).view(np.uint64)


def add_masks(vector: Words, keys: Iterable[tuple[bytes, int]]) -> None:
    """Add or subtract the streams of some keys, in place.

    A stream is AES-256 in counter mode from counter zero, read as little-endian 64-bit words. A key must never mask two
    vectors; the keys of a session are drawn for it alone.

    Parameters
    ----------
    vector : ndarray of uint64, shape ``[size]``
    keys : iterable of (bytes, int)
        Keys of 32 bytes, and 1 to add or -1 to subtract.
    """
    try:
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
    except ImportError:
        raise ConfigError("secure aggregation needs cryptography", "pip install fedpa[flower]") from None

    streams = [(Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor(), sign) for key, sign in keys]
    zeros, room = bytes(_PIECE * 8), np.empty(_PIECE * 8 + 15, np.uint8)
    for begin in range(0, len(vector), _PIECE):
        part = vector[begin : begin + _PIECE]
        size = len(part) * 8
        for stream, sign in streams:
            stream.update_into(memoryview(zeros)[:size], room.data)
            mask = room[:size].view(_WORD)
            (np.add if sign > 0 else np.subtract)(part, mask, out=part)
