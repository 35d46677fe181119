"""Every parameter has a scope; what is uploaded, stored and averaged follows from the scopes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fedpa.errors import ConfigError

__all__ = ["PERSONAL", "SHARED", "Block", "Layout", "Parameter", "Scope", "Span", "group", "starts"]


@dataclass(frozen=True)
class Scope:
    """Who trains a parameter and what the server does with it.

    ``shared``: every participant, averaged over participants. ``group``: participants whose user has a value of
    `key`, averaged within the value. ``personal``: one user; the server never sees it. What is frozen is not a
    parameter of the engine at all: it belongs to the foundation.
    """

    kind: Literal["shared", "group", "personal"]
    key: str | None = None

    def __str__(self) -> str:
        return self.kind if self.key is None else f"{self.kind}({self.key})"


SHARED = Scope("shared")
PERSONAL = Scope("personal")


def group(key: str) -> Scope:
    """The scope of parameters averaged among users who have the same value of `key`."""
    return Scope("group", key)


@dataclass(frozen=True)
class Parameter:
    """A named parameter with its start.

    Attributes
    ----------
    name : str
        Unique, dotted, for instance ``"layers.0.lora.user.a"``.
    start : Tensor or callable
        Its value before any training, of the parameter's shape; or, for a personal parameter, a function from
        user numbers [users] to starts [users, *shape]; or, for a group parameter, one start per value
        [values, *shape] when `per_value` is set.
    shape : tuple of int
    per_value : bool
        Whether `start` has a leading axis over the group's values.
    """

    name: str
    shape: tuple[int, ...]
    start: Tensor | Callable[[Tensor], Tensor]
    per_value: bool = False

    @property
    def size(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Block:
    """Parameters that meet the same input, stacked along their first axis into one product.

    The forward pass sees the block as one tensor [users, sum of first axes, *rest] under `name`.
    """

    name: str
    parameters: tuple[Parameter, ...]

    def __post_init__(self) -> None:
        if len({p.shape[1:] for p in self.parameters}) != 1:
            shapes = {p.name: p.shape for p in self.parameters}
            raise ConfigError(f"block {self.name}: parameters differ after their first axis: {shapes}")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the stacked tensor, without the user axis."""
        return (sum(p.shape[0] for p in self.parameters), *self.parameters[0].shape[1:])


@dataclass(frozen=True)
class Span:
    """Adjacent weights of equal scope in the flat vector of one user: ``[begin, end)``, and their parameters."""

    scope: Scope
    begin: int
    end: int
    parameters: tuple[Parameter, ...]

    @property
    def size(self) -> int:
        """Number of weights."""
        return self.end - self.begin


class Layout:
    """The order of all parameters in one user's flat vector of `size` weights.

    Parameters
    ----------
    blocks : sequence of Block
        In the order of the flat vector.
    rule : callable
        From a parameter's name to its scope.
    group_sizes : mapping
        Number of values of each group key.

    Raises
    ------
    ConfigError
        If a name occurs twice, or a scope names a group key that the data set does not have.
    """

    def __init__(self, blocks: Sequence[Block], rule: Callable[[str], Scope], group_sizes: Mapping[str, int]) -> None:
        self.blocks = tuple(blocks)
        self.group_sizes = dict(group_sizes)
        self.scopes: dict[str, Scope] = {}
        self.slices: dict[str, slice] = {}
        spans: list[Span] = []
        position = 0
        for parameter in self.parameters():
            if parameter.name in self.scopes:
                raise ConfigError(f"parameter {parameter.name!r} is named twice in the method's blocks")
            scope = rule(parameter.name)
            if scope.kind == "group" and scope.key not in self.group_sizes:
                raise ConfigError(
                    f"parameter {parameter.name!r} is averaged by group {scope.key!r}, which the data set lacks",
                    f"use one of {sorted(self.group_sizes)} or prepare the data set with --groups {scope.key}",
                )
            self.scopes[parameter.name] = scope
            begin, position = position, position + parameter.size
            self.slices[parameter.name] = slice(begin, position)
            if spans and spans[-1].scope == scope:
                last = spans.pop()
                spans.append(Span(scope, last.begin, position, (*last.parameters, parameter)))
            else:
                spans.append(Span(scope, begin, position, (parameter,)))
        self.size = position
        self.spans = tuple(spans)
        self.personal = tuple(span for span in spans if span.scope.kind == "personal")
        self.uploaded = tuple(span for span in spans if span.scope.kind != "personal")
        self.personal_size = sum(span.size for span in self.personal)

    def parameters(self) -> Iterator[Parameter]:
        """All parameters in order."""
        for block in self.blocks:
            yield from block.parameters

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """The blocks of a flat matrix [users, size] as tensors [users, *block.shape], sharing its memory."""
        position, views = 0, {}
        for block in self.blocks:
            size = math.prod(block.shape)
            views[block.name] = flat[:, position : position + size].view(-1, *block.shape)
            position += size
        return views

    def sizes_by_scope(self) -> dict[str, int]:
        """Number of weights that one user has in each scope, by the scope's name."""
        sizes: dict[str, int] = {}
        for span in self.spans:
            sizes[str(span.scope)] = sizes.get(str(span.scope), 0) + span.size
        return sizes

    def weights_up(self, users_by_key: Mapping[str, int], users: int) -> int:
        """Number of weights that `users` participants upload, `users_by_key` of whom have a value of each key."""
        return sum(
            span.size * (users if span.scope.kind == "shared" else users_by_key[str(span.scope.key)])
            for span in self.uploaded
        )


def starts(span: Span, values: int, dtype: torch.dtype) -> Tensor:
    """The server's start for a span: [1, size] when shared, [values, size] for a group."""
    rows = 1 if span.scope.kind == "shared" else values
    pieces = []
    for parameter in span.parameters:
        if callable(parameter.start):
            raise ConfigError(
                f"parameter {parameter.name!r}: a start that depends on the user needs the personal scope"
            )
        start = parameter.start.to(dtype)
        pieces.append(start.reshape(rows, -1) if parameter.per_value else start.reshape(1, -1).expand(rows, -1))
    return torch.cat(pieces, dim=1).contiguous()
