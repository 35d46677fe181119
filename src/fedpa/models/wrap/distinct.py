"""Frozen parts of a module computed once per distinct input: per chunk, and across chunks and rounds as memory allows.

While a pass runs, the forward of such a part is replaced: its output for a row is looked up by the row's key
(`fedpa.models.wrap.hashing`) and computed only where nobody computed it before, without gradient, always in
blocks of `BLOCK` rows, so that a row's result does not depend on the rows beside it. What it returns is a `Pending`
tensor, which is computed when something needs its values. If what needs it is another such part, it asks only for the
rows that it lacks itself: in a chain of frozen layers the last one's results are kept, and those before it are not
computed again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from fedpa.models.wrap.hashing import combined, keys_of
from fedpa.models.wrap.leaves import Opaque, flatten, rebuild
from fedpa.models.wrap.memory import Budget, Memory

__all__ = ["BLOCK", "Distinct", "Part", "Pending"]

BLOCK = 32
"""Rows that are computed together."""


@dataclass(frozen=True)
class Part:
    """A frozen part, as a check found it.

    Attributes
    ----------
    name : str
        Of the submodule.
    structure : object
        Of its arguments; see `fedpa.models.wrap.leaves`.
    by_row : tuple of bool
        Per tensor among its arguments whether its first dimension is the rows; the others are the same for all rows.
    """

    name: str
    structure: object
    by_row: tuple[bool, ...]


class Pending(torch.Tensor):
    """A tensor [rows, ...] that is computed when an operation reads it."""

    source: _Source

    @staticmethod
    def of(source: _Source, row: Tensor) -> Pending:
        """Promise a source's rows, each shaped like `row`."""
        made: Pending = torch.Tensor._make_wrapper_subclass(
            Pending, (len(source.keys), *row.shape), dtype=row.dtype, device=row.device
        )
        made.source = source
        return made

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        args, kwargs = tree_map_only(Pending, lambda one: one.source.read(), (args, kwargs or {}))
        return func(*args, **kwargs)


@dataclass
class _Source:
    """Rows of a part's output, not yet computed."""

    part: Part
    forward: Callable[..., Tensor]
    arguments: list[Tensor]
    keys: Tensor
    memory: Memory
    _whole: Tensor | None = None
    _lent: bool = False

    def read(self) -> Tensor:
        """All rows, for an operation that may write into them or pass on a view that somebody writes into."""
        self._lent = True
        return self.whole()

    def known_keys(self) -> Tensor:
        """Keys of the rows; of their bits as they are now once an operation has had them."""
        return keys_of(self.whole()) if self._lent else self.keys

    def whole(self, *, keep: bool = True) -> Tensor:
        """All rows; of the distinct ones what was computed is kept."""
        if self._whole is None:
            self._whole = self._rows(torch.arange(len(self.keys)), keep=keep)
        return self._whole

    def rows(self, which: Tensor) -> Tensor:
        """Some rows, by position; nothing is kept."""
        return self._rows(which, keep=False) if self._whole is None else self._whole[which]

    @torch.no_grad()
    def _rows(self, which: Tensor, *, keep: bool) -> Tensor:
        distinct, inverse = torch.unique(self.keys[which], return_inverse=True)
        hit, known = self.memory.find(distinct)
        if known is not None and hit.all():
            return known[inverse]
        # Of equal keys the first row stands for all.
        first = torch.full((len(distinct),), len(which)).scatter_reduce_(0, inverse, torch.arange(len(which)), "amin")
        missing = which[first[~hit]]
        fresh = torch.cat([self._block(missing[begin : begin + BLOCK]) for begin in range(0, len(missing), BLOCK)])
        if keep:
            self.memory.add(distinct[~hit], fresh)
        if known is None:
            return fresh[inverse]
        found = fresh.new_empty(len(distinct), *fresh.shape[1:])
        found[hit], found[~hit] = known, fresh
        return found[inverse]

    def _block(self, which: Tensor) -> Tensor:
        """At most `BLOCK` rows, filled up to that many with copies of the last."""
        full = torch.cat([which, which[-1:].expand(BLOCK - len(which))])
        leaves = [
            (_some(leaf, full) if by_row else leaf)
            for leaf, by_row in zip(self.arguments, self.part.by_row, strict=True)
        ]
        args, kwargs = rebuild(self.part.structure, leaves)
        return self.forward(*args, **kwargs)[: len(which)]


def _some(leaf: Tensor, which: Tensor) -> Tensor:
    return leaf.source.rows(which) if isinstance(leaf, Pending) else leaf.detach()[which]


class Distinct:
    """The frozen parts of a module and what they computed.

    Parameters
    ----------
    module : Module
    parts : sequence of Part
    most_bytes : int
        Of kept results.
    """

    def __init__(self, module: nn.Module, parts: list[Part], most_bytes: int) -> None:
        self.parts = parts
        self._module = module
        self._budget = Budget(most_bytes)
        self._memories: dict[tuple[object, ...], Memory] = {}
        self._examples: dict[tuple[object, ...], Tensor] = {}
        self._local = threading.local()
        self._lock = threading.Lock()
        self._running = 0

    @contextmanager
    def running(self, rows: int) -> Iterator[None]:
        """Have the parts computed once per distinct row in this thread until the block ends."""
        with self._lock:
            if self._running == 0:
                for number, part in enumerate(self.parts):
                    self._replace(number, part)
            self._running += 1
        self._local.rows = rows
        try:
            yield
        finally:
            self._local.rows = None
            with self._lock:
                self._running -= 1
                if self._running == 0:
                    for part in self.parts:
                        del self._module.get_submodule(part.name).forward

    def _replace(self, number: int, part: Part) -> None:
        layer = self._module.get_submodule(part.name)
        forward = layer.forward

        @wraps(forward)
        def shared(*args: Any, **kwargs: Any) -> Tensor:
            if getattr(self._local, "rows", None) is None:
                return forward(*args, **kwargs)  # type: ignore[no-any-return]
            return self._shared(number, part, forward, args, kwargs)

        layer.forward = shared

    def _shared(
        self, number: int, part: Part, forward: Callable[..., Tensor], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Tensor:
        try:
            structure, leaves = flatten((args, dict(kwargs)))
        except Opaque:
            structure, leaves = None, []
        rows = [leaf for leaf, by_row in zip(leaves, part.by_row, strict=False) if by_row]
        fits = structure == part.structure and len({len(leaf) for leaf in rows}) == 1
        if not fits or len(rows[0]) % self._local.rows or any(leaf.requires_grad for leaf in leaves):
            return forward(*args, **kwargs)
        with torch.no_grad():
            constants = [leaf for leaf, by_row in zip(leaves, part.by_row, strict=True) if not by_row]
            shapes = (number, leaves[0].device, *((tuple(leaf.shape[1:]), leaf.dtype) for leaf in leaves))
            same = [keys_of(leaf.reshape(1, -1)).expand(len(rows[0])) for leaf in constants]
            keys = combined([*(_keys(leaf) for leaf in rows), *same], number).cpu()
            memory = self._memories.setdefault(shapes, Memory(self._budget))
            source = _Source(part, forward, leaves, keys, memory)
            if shapes not in self._examples:
                self._examples[shapes] = source.whole(keep=False)[0].clone()
            return Pending.of(source, self._examples[shapes])


def _keys(leaf: Tensor) -> Tensor:
    return leaf.source.known_keys().to(leaf.device) if isinstance(leaf, Pending) else keys_of(leaf)
