"""One vector of 64-bit integers that holds arrays and integers of any size, so that its sum holds their sums."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from fedpa.privacy.secagg.terms import AbortError, ProtocolError

__all__ = ["Slots"]

Ints = npt.NDArray[np.int64]

_HALF = 32  # bits of the lower part of an integer: 2^31 nodes' parts add up in 64 bits
_LARGEST = 1 << 92


class Slots:
    """Where what is in a vector of secure sums; the same for every node, whatever it holds.

    The first slot is 1 on every node, so that their number shows whether the masks are off. Then come the arrays, then
    the integers in two parts each.

    Parameters
    ----------
    arrays : mapping of str to tuple of int
        Shapes.
    integers : sequence of str
        Names of integers below 2^92.
    """

    def __init__(self, arrays: Mapping[str, tuple[int, ...]], integers: Sequence[str] = ()) -> None:
        self.arrays = dict(arrays)
        self.integers = tuple(integers)

    @property
    def length(self) -> int:
        """Of the vector."""
        return 1 + sum(map(math.prod, self.arrays.values())) + 2 * len(self.integers)

    @property
    def digest(self) -> str:
        """SHA-256 of the names and shapes, in order; equal ones mean the same vector."""
        return hashlib.sha256(json.dumps([list(self.arrays.items()), self.integers]).encode()).hexdigest()

    def pack(self, arrays: Mapping[str, Ints], integers: Mapping[str, int]) -> Ints:
        """Everything in one vector [length].

        Raises
        ------
        ProtocolError
            If a name, type, shape or size is not as declared.
        """
        if arrays.keys() != self.arrays.keys() or integers.keys() != set(self.integers):
            raise ProtocolError(f"expected {[*self.arrays, *self.integers]}, found {[*arrays, *integers]}")
        vector = np.empty(self.length, np.int64)
        vector[0], begin = 1, 1
        for name, shape in self.arrays.items():
            found = arrays[name]
            if found.dtype != np.int64 or found.shape != shape:
                raise ProtocolError(f"{name}: expected int64 {shape}, found {found.dtype} {found.shape}")
            vector[begin : begin + found.size] = found.reshape(-1)
            begin += found.size
        for name in self.integers:
            value = integers[name]
            if not -_LARGEST < value < _LARGEST:
                raise ProtocolError(f"{name} does not fit 92 bits")
            vector[begin : begin + 2] = value >> _HALF, value & ((1 << _HALF) - 1)
            begin += 2
        return vector

    def unpack(self, vector: Ints, nodes: int) -> tuple[dict[str, Ints], dict[str, int]]:
        """The sums of arrays and of integers over so many nodes.

        Raises
        ------
        AbortError
            If it is not a sum over so many nodes.
        """
        if vector.shape != (self.length,) or int(vector[0]) != nodes:
            raise AbortError(f"what was unmasked is no sum over {nodes} nodes; a node or the transport altered it")
        arrays, integers, begin = {}, {}, 1
        for name, shape in self.arrays.items():
            size = math.prod(shape)
            arrays[name] = vector[begin : begin + size].reshape(shape)
            begin += size
        for name in self.integers:
            high, low = map(int, vector[begin : begin + 2])
            integers[name] = (high << _HALF) + low
            begin += 2
        return arrays, integers
