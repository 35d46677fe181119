"""Every parameter has a scope; what is uploaded, stored and averaged follows from the scopes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fedpa.errors import ConfigError

__all__ = ["PERSONAL", "SHARED", "Block", "Layout", "Parameter", "Scope", "Span", "Vector", "group"]


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
    """Adjacent weights of equal scope in the flat vector of one user: ``[begin, end)``."""

    begin: int
    end: int

    @property
    def size(self) -> int:
        """Number of weights."""
        return self.end - self.begin


@dataclass(frozen=True)
class Vector:
    """All weights of one scope, in the order of the flat vector: what is sent, summed or stored together."""

    scope: Scope
    spans: tuple[Span, ...]
    parameters: tuple[Parameter, ...]
    values: int

    @property
    def size(self) -> int:
        """Number of weights."""
        return sum(span.size for span in self.spans)

    def pairs(self, flat: Tensor, values: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Views of the same weights in flat vectors [users, layout size] and in this scope's own [rows, size]."""
        position = 0
        for span in self.spans:
            yield flat[:, span.begin : span.end], values[:, position : position + span.size]
            position += span.size

    def take(self, flat: Tensor) -> Tensor:
        """Columns of this scope in flat vectors [users, layout size] as [users, size]."""
        return torch.cat([flat[:, span.begin : span.end] for span in self.spans], dim=1)

    def put(self, flat: Tensor, values: Tensor) -> None:
        """Write [users, size] (or [1, size] for all) into the flat vectors."""
        for into, value in self.pairs(flat, values):
            into.copy_(value.expand_as(into))

    def split(self, values: Tensor) -> dict[str, Tensor]:
        """Views by parameter: [rows, size] as [rows, *shape] each."""
        found, position = {}, 0
        for parameter in self.parameters:
            found[parameter.name] = values[:, position : position + parameter.size].view(-1, *parameter.shape)
            position += parameter.size
        return found

    def starts(self, dtype: torch.dtype) -> Tensor:
        """The server's start: [1, size] when shared, [values, size] for a group."""
        pieces = []
        for parameter in self.parameters:
            if callable(parameter.start):
                raise ConfigError(
                    f"parameter {parameter.name!r}: a start that depends on the user needs the personal scope"
                )
            rows = parameter.start.to(dtype).reshape(self.values if parameter.per_value else 1, -1)
            pieces.append(rows.expand(self.values, -1))
        return torch.cat(pieces, dim=1).contiguous()


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
        self.places: dict[str, Span] = {}
        found: dict[Scope, tuple[list[Span], list[Parameter]]] = {}
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
            self.places[parameter.name] = Span(position, position + parameter.size)
            spans, members = found.setdefault(scope, ([], []))
            begin, position = position, position + parameter.size
            if spans and spans[-1].end == begin:
                begin = spans.pop().begin
            spans.append(Span(begin, position))
            members.append(parameter)
        self.size = position
        vectors = [
            Vector(scope, tuple(spans), tuple(members), self.group_sizes[scope.key] if scope.key else 1)
            for scope, (spans, members) in found.items()
        ]
        self.uploaded = tuple(v for v in vectors if v.scope.kind != "personal")
        self.personal = next((v for v in vectors if v.scope.kind == "personal"), None)
        self.largest_upload = max((vector.size for vector in self.uploaded), default=0)
        self.personal_size = self.personal.size if self.personal else 0

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
        everything = (*self.uploaded, *([self.personal] if self.personal else []))
        return {str(vector.scope): vector.size for vector in everything}
