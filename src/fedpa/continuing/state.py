"""The server's part of a run under another layout."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedpa.continuing.carried import Carried, alike, moved
from fedpa.federation.parameters import Vector
from fedpa.federation.server import Server, TableRows

__all__ = ["carry_server"]

Ints = npt.NDArray[np.int64]


class _Piece(NamedTuple):
    """A parameter in common: its scope and columns there, before and today, and the old row of every row."""

    old: int
    was: slice
    new: int
    now: slice
    rows: Ints
    by_item: bool


def carry_server(before: Server, today: Server, carried: Carried) -> None:
    """Give a new server what another one had learnt; what is new stays at its start.

    Shared parameters go by their names, group parameters by the values of their groups, rows of tables by their items.
    Each is taken over as its change from where it began, and to the bit where it begins there again. Rows of items,
    whose starts are draws without a meaning, are taken over as they are. The optimiser's moments and what single users
    are to receive go the same way.

    Parameters
    ----------
    before, today : Server
        The second one is changed.
    carried : Carried
        Of their layouts.
    """
    pieces = list(_pieces(carried))
    saved = before.saved()
    found = {name: value.clone() for name, value in today.saved().items()}
    for piece in pieces:
        old, new = carried.before.uploaded[piece.old], carried.today.uploaded[piece.new]
        state = _by_row(saved[f"state.{piece.old}"], old)[:, piece.was]
        start, new_start = (_by_row(v.starts(d), v) for v, d in ((old, before.dtype), (new, today.dtype)))
        start, into = start[:, piece.was], _by_row(found[f"state.{piece.new}"], new)[:, piece.now]
        known = piece.rows >= 0
        source, target = torch.from_numpy(piece.rows[known]), torch.from_numpy(known)
        value = state[source]
        if not piece.by_item:
            value = moved(value, start[source], new_start[target, piece.now])
        into[target] = value.to(into.dtype)
        if carried.same_foundation and before.settings.server_optimizer == today.settings.server_optimizer:
            for place in range(2):
                _carry_moment(saved, found, piece, place, (old, new), today)
    today.restore(found)
    today.downlink = tuple(
        _carried_rows(sent, carried)
        for sent in before.downlink
        if carried.same_foundation and sent.table in carried.tables
    )


def _pieces(carried: Carried) -> Iterator[_Piece]:
    """Everything in common, scope by scope."""
    for new, vector in enumerate(carried.today.uploaded):
        for old, other in enumerate(carried.before.uploaded):
            if vector.table is not None and other.table is not None and vector.table.name == other.table.name:
                name, width = vector.table.name, slice(0, vector.table.width)
                if name in carried.tables:
                    yield _Piece(old, width, new, width, carried.tables[name], name in carried.by_item)
            elif vector.table is None and other.table is None and alike(vector.scope, other.scope):
                key = vector.scope.key
                rows = np.zeros(1, np.int64) if key is None else carried.where.groups[key]
                for was, now in carried.columns(other.parameters, vector.parameters):
                    yield _Piece(old, was, new, now, rows, by_item=False)


def _by_row(values: Tensor, vector: Vector) -> Tensor:
    """Rows of a table, or of a group's values, or the only one [rows, weights]."""
    return values.view(-1, vector.table.width) if vector.table is not None else values


def _carry_moment(
    saved: Mapping[str, Tensor],
    found: dict[str, Tensor],
    piece: _Piece,
    place: int,
    vectors: tuple[Vector, Vector],
    today: Server,
) -> None:
    """Take one of the server's two moments over; zero where there was none."""
    name, given = f"moments.{piece.new}.{place}", saved.get(f"moments.{piece.old}.{place}")
    if given is None:
        return
    old, new = vectors
    if name not in found:
        state = found[f"state.{piece.new}"]
        by_row = new.table is not None and today.settings.table_mean == "touched"
        found[name] = torch.zeros_like(_by_row(state, new) if by_row else state, dtype=given.dtype)
    known = piece.rows >= 0
    into = _by_row(found[name], new)[:, piece.now]
    into[torch.from_numpy(known)] = _by_row(given, old)[torch.from_numpy(piece.rows[known]), piece.was]


def _carried_rows(sent: TableRows, carried: Carried) -> TableRows:
    """What single users were to receive, without those who left and rows that are no more."""
    users = _backwards(carried.where.users, sent.users)
    ids = _backwards(carried.tables[sent.table], sent.ids)
    here = (users >= 0) & (ids >= 0)
    return TableRows(sent.table, users[here], ids[here], sent.values[torch.from_numpy(here)]).sorted()


def _backwards(places: Ints, old: Ints) -> Ints:
    """Where old numbers are today, -1 where nowhere."""
    found = np.full(max(int(places.max(initial=-1)), int(old.max(initial=-1))) + 1, -1)
    here = np.flatnonzero(places >= 0)
    found[places[here]] = here
    return found[old]
