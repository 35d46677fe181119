"""What of a method's parameters holds under another layout, by name, and what does not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedpa.continuing.correspondence import Correspondence
from fedpa.federation.parameters import Layout, Parameter, Scope, Table

__all__ = ["Carried", "alike", "moved"]

Ints = npt.NDArray[np.int64]


def alike(one: Scope, other: Scope) -> bool:
    """Whether the same users train two parameters and keep the same of them."""
    return (one.kind, one.key, one.keeps) == (other.kind, other.key, other.keeps)


def moved(value: Tensor, start: Tensor, new_start: Tensor) -> Tensor:
    """Take a change over to another start; where the starts are equal the value stays as it is, to the bit.

    Parameters
    ----------
    value, start : Tensor
        A trained parameter and where it began.
    new_start : Tensor
        Where it begins now, of the same shape.
    """
    change = value.double() - start.double()
    return torch.where(start == new_start, value.to(new_start.dtype), (new_start + change).to(new_start.dtype))


class Carried:
    """What two layouts have in common.

    Parameters
    ----------
    before, today : Layout
    where : Correspondence
    same_foundation : bool
        Whether codes of the foundation, and the moments of optimisers, still mean what they meant.

    Attributes
    ----------
    parameters : frozenset of str
        Parameters of equal name, scope and shape.
    tables : dict of str to ndarray
        For each table in common, of every row of today its row before, -1 for a new one.
    by_item : frozenset of str
        Those of them whose rows are items.
    dropped : list of dict
        What is not carried over: ``name``, its shape before (``was``) and today (``now``), None if there is none, and
        ``why``.
    began : list of str
        Names that there were not before.
    """

    def __init__(self, before: Layout, today: Layout, where: Correspondence, *, same_foundation: bool) -> None:
        self.before, self.today, self.where, self.same_foundation = before, today, where, same_foundation
        self.tables: dict[str, Ints] = {}
        self.dropped: list[dict[str, Any]] = []
        old, new = _parts(before), _parts(today)
        self.began = [name for name in new if name not in old]
        kept, by_item = set(), set()
        for name, was in old.items():
            now = new.get(name)
            why = None
            if now is None:
                why = "is no more"
            elif not alike(before.scopes[name], today.scopes[name]):
                why = f"was {before.scopes[name]}, is {today.scopes[name]}"
            elif isinstance(was, Parameter) and isinstance(now, Parameter) and was.shape == now.shape:
                kept.add(name)
            elif not (isinstance(was, Table) and isinstance(now, Table) and was.width == now.width):
                why = "has another shape"
            elif _is_by_item(was, where.old_items) and _is_by_item(now, len(where.items)):
                self.tables[name] = where.items
                by_item.add(name)
            elif was.rows != now.rows:
                why = "has another shape"
            elif not (same_foundation and where.same_codes):
                why = "its rows are codes, which mean something else"
            else:
                self.tables[name] = np.arange(now.rows)
            if why is not None:
                self.dropped.append({"name": name, "was": _shape(was), "now": _shape(now), "why": why})
        self.parameters, self.by_item = frozenset(kept), frozenset(by_item)

    def columns(self, before: tuple[Parameter, ...], today: tuple[Parameter, ...]) -> Iterator[tuple[slice, slice]]:
        """Of parameters that lie one after another: where each of those in common was and is."""
        was, now = _places(before), _places(today)
        for name, place in now.items():
            if name in was and name in self.parameters:
                yield was[name], place


def _places(parameters: tuple[Parameter, ...]) -> dict[str, slice]:
    found, position = {}, 0
    for parameter in parameters:
        found[parameter.name] = slice(position, position + parameter.size)
        position += parameter.size
    return found


def _parts(layout: Layout) -> Mapping[str, Parameter | Table]:
    found: dict[str, Parameter | Table] = {parameter.name: parameter for parameter in layout.parameters()}
    return found | {table.name: table for table in layout.tables}


def _shape(part: Parameter | Table | None) -> list[int] | None:
    if part is None:
        return None
    return [part.rows, part.width] if isinstance(part, Table) else [*part.shape]


def _is_by_item(table: Table, items: int) -> bool:
    """Whether row i of a table belongs to item i."""
    if table.per != "row" or table.rows != items:
        return False
    numbers = torch.arange(items)
    found = table.ids(numbers, torch.zeros(items, 1, dtype=torch.int64))
    return found.shape == (items, 1) and bool((found[:, 0] == numbers).all())
