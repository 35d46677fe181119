"""Arguments of a module taken apart into tensors and what is around them, and put together again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["Opaque", "flatten", "rebuild"]

_PLAIN = (type(None), bool, int, float, str, torch.dtype, torch.device)


class Opaque(Exception):  # noqa: N818
    """Something whose content cannot be told, so that it cannot be compared."""


def flatten(value: Any) -> tuple[object, list[Tensor]]:
    """The structure of nested tuples, lists and dicts, as something to compare, and the tensors in them.

    Raises
    ------
    Opaque
        If there is anything in them but tensors and plain values.
    """
    leaves: list[Tensor] = []
    return _structure(value, leaves), leaves


def rebuild(structure: object, leaves: Sequence[Tensor]) -> Any:
    """The nested value again, with other tensors."""
    return _value(structure, iter(leaves))


def _structure(value: Any, leaves: list[Tensor]) -> object:
    if isinstance(value, Tensor):
        leaves.append(value)
        return ("tensor",)
    if isinstance(value, _PLAIN):
        return ("plain", type(value), value)
    if type(value) in (tuple, list):
        return ("sequence", type(value), tuple(_structure(one, leaves) for one in value))
    if type(value) is dict and all(isinstance(key, str) for key in value):
        return ("dict", tuple((key, _structure(one, leaves)) for key, one in value.items()))
    raise Opaque(type(value).__name__)


def _value(structure: Any, leaves: Iterator[Tensor]) -> Any:
    kind = structure[0]
    if kind == "tensor":
        return next(leaves)
    if kind == "plain":
        return structure[2]
    if kind == "sequence":
        return structure[1](_value(one, leaves) for one in structure[2])
    return {key: _value(one, leaves) for key, one in structure[1]}
