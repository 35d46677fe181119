"""Finds the parts of a module that no adapter can change and whose rows do not depend on each other."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn

from fedpa.models.wrap.distinct import Part
from fedpa.models.wrap.leaves import rebuild
from fedpa.models.wrap.trace import Call, close

__all__ = ["frozen_parts"]

_WORTH = 16
"""Multiplications per number that goes in or comes out, from which looking a row up is sure to be cheaper."""


def frozen_parts(
    module: nn.Module,
    layers: Sequence[str],
    whole: Sequence[Call],
    fewer: Sequence[Call],
    adapted: Sequence[Sequence[Call]],
) -> list[Part]:
    """The outermost submodules that are worth computing once per distinct row.

    Parameters
    ----------
    module : Module
    layers : sequence of str
        What is adapted or trained.
    whole, fewer : sequence of Call
        Traces of the module without adapters, on some rows and on the first half of them.
    adapted : sequence of sequence of Call
        Traces with two draws of adapters, on the same rows as `whole`.
    """
    parts: list[Part] = []
    for name, layer in module.named_modules():
        inside = any(name.startswith(f"{part.name}.") for part in parts)
        if not name or inside or any(f"{one}.".startswith(f"{name}.") for one in layers):
            continue
        calls = [[call for call in trace if call.name == name] for trace in (whole, fewer, *adapted)]
        if not calls[0] or len({len(trace) for trace in calls}) > 1 or not _worth(layer, calls[0][0]):
            continue
        found = {_part(layer, *same) for same in zip(*calls, strict=True)}
        part = found.pop()
        if part is not None and not found:
            parts.append(part)
    return parts


def _worth(layer: nn.Module, call: Call) -> bool:
    if call.output is None:
        return False
    weights = sum(
        value.numel()
        for part in layer.modules()
        if not isinstance(part, nn.Embedding)
        for value in part.parameters(recurse=False)
        if value.dim() > 1
    )
    numbers = sum(prod(leaf.shape[1:]) for leaf in (*call.inputs, call.output))
    return weights * prod(call.output.shape[1:-1]) >= _WORTH * numbers


def _part(layer: nn.Module, whole: Call, fewer: Call, *adapted: Call) -> Part | None:
    """The part, if one call of it was as it must be."""
    if whole.structure is None or any(call.structure != whole.structure for call in (fewer, *adapted)):
        return None
    if not whole.kept or any(not _equal(call.inputs, whole.inputs) for call in adapted):
        return None
    if whole.output is None or fewer.output is None or whole.output.dim() < 2:
        return None
    count = len(whole.output)
    if count != 2 * len(fewer.output):
        return None
    by_row = []
    for one, other in zip(whole.inputs, fewer.inputs, strict=True):
        rows = one.dim() > 0 and len(one) == count and len(other) == count // 2
        if not rows and not _equal([one], [other]):
            return None
        by_row.append(rows)
    if not any(by_row) or not _row_wise(layer, whole, by_row):
        return None
    return Part(whole.name, whole.structure, tuple(by_row))


def _row_wise(layer: nn.Module, call: Call, by_row: Sequence[bool]) -> bool:
    """Whether some of the rows, in another order and some twice, give what they gave among the others."""
    if call.output is None:
        return False
    which = torch.tensor([3, 0, 1, 1, len(call.output) - 1])
    leaves = [leaf[which] if rows else leaf for leaf, rows in zip(call.inputs, by_row, strict=True)]
    args, kwargs = rebuild(call.structure, leaves)
    return close(layer.forward(*args, **kwargs), call.output[which])


def _equal(some: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return len(some) == len(others) and all(torch.equal(one, other) for one, other in zip(some, others, strict=True))
