"""Every parameter has a scope; what is uploaded, stored and averaged follows from the scopes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from fedpa.errors import ConfigError

__all__ = [
    "FROZEN",
    "PERSONAL",
    "SHARED",
    "Block",
    "Layout",
    "Parameter",
    "Scope",
    "Span",
    "Table",
    "Vector",
    "group",
]


_UPLOADED = ("shared", "group")


@dataclass(frozen=True)
class Scope:
    """Who trains a parameter and what the server does with it.

    ``shared``: every participant, averaged over participants. ``group``: participants whose user has a value of
    `key`, averaged within the value. ``personal``: one user; the server never sees it. ``frozen``: nobody; the device
    has its start from the beginning. What belongs to the foundation is not a parameter of the engine at all.

    Attributes
    ----------
    kind : {"shared", "group", "personal", "frozen"}
    key : str or None
        Of a group.
    keeps : bool
        Whether the device keeps its own copy of what it uploads, and scores with it. Only for ``shared``.
    sees : {"sum", "rows"}
        What the server may see of the uploads: their sum, or each of them.
    """

    kind: Literal["shared", "group", "personal", "frozen"]
    key: str | None = None
    keeps: bool = False
    sees: Literal["sum", "rows"] = "sum"

    def __str__(self) -> str:
        kept = ", kept" if self.keeps else ""
        return (self.kind if self.key is None else f"{self.kind}({self.key})") + kept


SHARED = Scope("shared")
PERSONAL = Scope("personal")
FROZEN = Scope("frozen")


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
class Table:
    """A parameter of which a user needs only the rows that its own data touch, such as item embeddings.

    In memory a user has those rows alone; on the wire the table is always whole, so that a message's size says nothing
    of the rows that a user touched.

    Attributes
    ----------
    name : str
        Unique, also the name of its block in the forward pass [users, touched rows, width].
    rows, width : int
    start : Tensor
        [rows, width].
    ids : callable
        For ``per="row"`` from items [...] and context codes [..., features] to rows of the table [..., ids]; the
        forward pass finds their places among the touched rows in ``batch.slots``. For ``per="user"`` from user numbers
        [users] to distinct rows [users, ids], which are the block.
    per : {"row", "user"}
    """

    name: str
    rows: int
    width: int
    start: Tensor
    ids: Callable[..., Tensor]
    per: Literal["row", "user"] = "row"

    @property
    def parameter(self) -> Parameter:
        """The whole table as a parameter."""
        return Parameter(self.name, (self.rows, self.width), self.start)


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
    """All weights of one scope, in the order of the flat vector: what is sent, summed or stored together.

    A table is a vector of its own, without spans: its place in the flat vector depends on who is computed together.
    """

    scope: Scope
    spans: tuple[Span, ...]
    parameters: tuple[Parameter, ...]
    values: int
    table: Table | None = None

    @property
    def size(self) -> int:
        """Number of weights."""
        return sum(parameter.size for parameter in self.parameters)

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
    tables : sequence of Table
        Their touched rows follow the `size` weights of the blocks, in this order.

    Raises
    ------
    ConfigError
        If a name occurs twice, a scope names a group key that the data set does not have, or a table has a scope that
        tables cannot have.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        rule: Callable[[str], Scope],
        group_sizes: Mapping[str, int],
        tables: Sequence[Table] = (),
    ) -> None:
        self.blocks = tuple(blocks)
        self.tables = tuple(tables)
        self.group_sizes = dict(group_sizes)
        self._rule = rule
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
        self.largest_upload = max((v.size for v in vectors if v.scope.kind in _UPLOADED), default=0)
        for table in self.tables:
            scope = rule(table.name)
            if table.name in self.scopes or scope.kind == "group":
                what = "is named twice" if table.name in self.scopes else "cannot be averaged by group"
                raise ConfigError(f"table {table.name!r} {what}", "give tables a shared, personal or frozen scope")
            self.scopes[table.name] = scope
            vectors.append(Vector(scope, (), (table.parameter,), 1, table))
        self.uploaded = tuple(v for v in vectors if v.scope.kind in _UPLOADED)
        self.personal = next((v for v in vectors if v.scope.kind == "personal" and v.table is None), None)
        self.personal_size = self.personal.size if self.personal else 0
        self.frozen = tuple(v for v in vectors if v.scope.kind == "frozen" and v.table is None)
        self.kept = tuple(v for v in vectors if v.scope.keeps and v.table is None)

    def extended(self, block: Block, scope: Scope) -> Layout:
        """The layout with one more block after the others, all of whose parameters have `scope`."""
        names = {parameter.name for parameter in block.parameters}
        return Layout(
            (*self.blocks, block),
            lambda name: scope if name in names else self._rule(name),
            self.group_sizes,
            self.tables,
        )

    def with_rows_seen(self) -> Layout:
        """The layout with scopes that let the server see every single upload."""
        seen = {
            name: replace(scope, sees="rows") if scope.kind in _UPLOADED else scope
            for name, scope in self.scopes.items()
        }
        return Layout(self.blocks, seen.__getitem__, self.group_sizes, self.tables)

    def parameters(self) -> Iterator[Parameter]:
        """All parameters in order."""
        for block in self.blocks:
            yield from block.parameters

    def width(self, lengths: Sequence[int]) -> int:
        """Weights of one user with so many touched rows of each table."""
        return self.size + sum(table.width * length for table, length in zip(self.tables, lengths, strict=True))

    def table_spans(self, lengths: Sequence[int]) -> list[Span]:
        """Where the touched rows of each table are in the flat vector."""
        found, position = [], self.size
        for table, length in zip(self.tables, lengths, strict=True):
            found.append(Span(position, position + table.width * length))
            position += table.width * length
        return found

    def views(self, flat: Tensor, lengths: Sequence[int] = ()) -> dict[str, Tensor]:
        """The blocks of a flat matrix [users, width] as tensors [users, *block.shape], sharing its memory.

        Tables follow as [users, touched rows, table width] when `lengths` says how many rows each has.
        """
        position, views = 0, {}
        for block in self.blocks:
            size = math.prod(block.shape)
            views[block.name] = flat[:, position : position + size].view(-1, *block.shape)
            position += size
        if lengths:
            for table, span in zip(self.tables, self.table_spans(lengths), strict=True):
                views[table.name] = flat[:, span.begin : span.end].unflatten(1, (-1, table.width))
        return views

    def row(self, value: Callable[[str], float], lengths: Sequence[int] = ()) -> Tensor:
        """One number for every weight of the flat vector, by the name of its parameter: float64 [width]."""
        spans = self.table_spans(lengths) if lengths else []
        sizes = [(parameter.name, parameter.size) for parameter in self.parameters()]
        sizes += [(table.name, span.size) for table, span in zip(self.tables, spans, strict=False)]
        pieces = [torch.full((size,), value(name), dtype=torch.float64) for name, size in sizes]
        return torch.cat(pieces) if pieces else torch.zeros(0, dtype=torch.float64)

    def sizes_by_scope(self) -> dict[str, int]:
        """Number of weights that one user has in each scope, by the scope's name."""
        sizes: dict[str, int] = {}
        everything: list[Parameter] = [*self.parameters(), *(table.parameter for table in self.tables)]
        for parameter in everything:
            scope = str(self.scopes[parameter.name])
            sizes[scope] = sizes.get(scope, 0) + parameter.size
        return sizes
