"""Keys of rows: equal rows have equal keys, and unequal ones in all likelihood have not.

A row is read as 32-bit words w_i, and its key is two independent sums ``(sum_i a_i w_i + b) mod 2^64`` of which the
upper halves are kept (Dietzfelbinger, *Universal hashing and k-wise independent random variables via integer arithmetic
without primes*, STACS 1996). Over the draw of the multipliers, two given unequal rows of one shape have equal keys with
a probability of at most 2^-64; among n rows any two have with at most n^2 / 2^65, for a million 2^-25. The draw is
fixed, so this holds for data that were not made with the multipliers in view.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedpa.draws import generator

__all__ = ["combined", "keys_of"]

_WORDS_AT_ONCE = 1 << 22
_MULTIPLIERS: dict[torch.device, Tensor] = {}


def keys_of(rows: Tensor) -> Tensor:
    """Key of every row [rows], int64, of the bits of a tensor [rows, ...]."""
    words = _words(rows)
    a = _multipliers(words.shape[1] + 1, rows.device)
    keys = torch.empty(len(words), dtype=torch.int64, device=rows.device)
    step = max(1, _WORDS_AT_ONCE // max(1, words.shape[1]))
    for begin in range(0, len(words), step):
        piece = words[begin : begin + step].to(torch.int64)
        first, second = ((piece * a[half, 1:]).sum(1) + a[half, 0] for half in range(2))
        keys[begin : begin + step] = (first & _UPPER) | ((second >> 32) & _LOWER)
    return keys


def combined(keys: Sequence[Tensor], salt: int) -> Tensor:
    """One key [rows] of several of the same rows and a number."""
    columns = [torch.full_like(keys[0], salt), *keys]
    return keys_of(torch.stack(columns, 1))


_LOWER = (1 << 32) - 1
_UPPER = ~_LOWER


def _words(rows: Tensor) -> Tensor:
    """The bits of every row as 32-bit words [rows, words]."""
    flat = rows.detach().reshape(len(rows), -1).contiguous()
    if flat.element_size() % 4:
        return flat.view(torch.uint8) if flat.element_size() == 1 else flat.view(torch.int16)
    return flat.view(torch.int32)


def _multipliers(count: int, device: torch.device) -> Tensor:
    """Random 64-bit numbers [2, count], of which any number of first ones are always the same."""
    known = _MULTIPLIERS.get(device)
    if known is None or known.shape[1] < count:
        length = 1 << max(10, (count - 1).bit_length())
        quarters = [
            torch.randint(0, 1 << 32, (length,), generator=generator(0, "distinct", place), dtype=torch.int64)
            for place in range(4)
        ]
        known = torch.stack([quarters[0] | quarters[1] << 32, quarters[2] | quarters[3] << 32]).to(device)
        _MULTIPLIERS[device] = known
    return known[:, :count]
