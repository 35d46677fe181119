"""What went into every submodule and came out of it, to compare two runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedpa.models.wrap.leaves import Opaque, flatten

__all__ = ["Call", "close", "traced"]


@dataclass
class Call:
    """One call of a submodule, in the order in which they ended.

    Attributes
    ----------
    name : str
    structure : object or None
        Of its arguments; None where they hold more than tensors and plain values.
    inputs : list of Tensor
        Copies of the tensors among them, as they were before the call.
    output : Tensor or None
        A copy; None where it is not one tensor.
    kept : bool
        Whether the call left its inputs as they were.
    """

    name: str
    structure: object
    inputs: list[Tensor]
    output: Tensor | None = None
    kept: bool = True


@contextlib.contextmanager
def traced(module: nn.Module) -> Iterator[list[Call]]:
    """Note every call of a submodule until the block ends."""
    calls: list[Call] = []
    begun: list[tuple[Call, list[Tensor]]] = []

    def before(name: str, args: Any, kwargs: Any) -> None:
        try:
            structure, leaves = flatten((args, kwargs))
        except Opaque:
            structure, leaves = None, []
        begun.append((Call(name, structure, [leaf.detach().clone() for leaf in leaves]), leaves))

    def after(output: Any) -> None:
        call, leaves = begun.pop()
        call.output = output.detach().clone() if isinstance(output, Tensor) else None
        call.kept = all(torch.equal(leaf.detach(), was) for leaf, was in zip(leaves, call.inputs, strict=True))
        calls.append(call)

    handles: list[Any] = []
    for name, layer in module.named_modules():
        if name:
            handles += [
                layer.register_forward_pre_hook(lambda _, a, k, name=name: before(name, a, k), with_kwargs=True),
                layer.register_forward_hook(lambda _, a, k, output: after(output), with_kwargs=True),
            ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def close(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal up to rounding."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if not one.is_floating_point():
        return torch.equal(one, other)
    if not one.numel():
        return True
    precise = 1e-9 if one.dtype == torch.float64 else 1e-4
    largest = float(one[one.isfinite()].abs().max()) if one.isfinite().any() else 1.0
    return torch.allclose(one, other, rtol=precise, atol=precise * max(1e-3, largest), equal_nan=True)
