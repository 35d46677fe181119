"""What devices keep under another layout: by the user's id, the parameter's name, and the row of a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedpa.continuing.carried import Carried, alike
from fedpa.federation.device import DeviceStore
from fedpa.federation.parameters import Layout, Parameter, Table
from fedpa.federation.touched import TouchedRows
from fedpa.settings import Settings

__all__ = ["Kept", "carry_devices"]

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Values = npt.NDArray[np.floating]
_USERS, _ROWS = 4096, 1 << 16


class Kept(NamedTuple):
    """What the devices of a shard keep, and how it is laid out.

    Attributes
    ----------
    layout : Layout
    settings : Settings
    store : DeviceStore
    touched : mapping of str to TouchedRows
        Of every table of which devices keep rows.
    """

    layout: Layout
    settings: Settings
    store: DeviceStore
    touched: Mapping[str, TouchedRows]

    def table(self, name: str) -> Table:
        """One of the tables."""
        return next(table for table in self.layout.tables if table.name == name)


def carry_devices(
    before: Kept, today: Kept, carried: Carried, places: Ints, state: Sequence[Tensor], number: int
) -> int:
    """Write a generation in which known users have what they kept and new ones have zeros.

    All of it is kept as changes from a start. A user whose features or group changed keeps the change. Rows of items,
    whose starts are draws without a meaning, stay what they were. What an own copy of a shared parameter lacks, such as
    the row of an item that the user had not met, is what the server has.

    Parameters
    ----------
    before, today : Kept
        Today's store has no generation yet.
    carried : Carried
        Of the two layouts.
    places : ndarray of int64, shape ``[users]``
        For every user of today's shard its place among those of before, -1 for a new one.
    state : sequence of Tensor
        Of the server, under today's layout.
    number : int
        Of the generation.

    Returns
    -------
    int
        How many users have anything but zeros in their own row.
    """
    store, known, some = today.store, np.flatnonzero(places >= 0), 0
    took_part = np.zeros(len(places), np.bool_)
    store.begin(np.arange(len(places)), today.touched, number)
    columns = _Columns(before, today, carried, state)
    for begin in range(0, len(known) if store.size else 0, _USERS):
        users = known[begin : begin + _USERS]
        stored = before.store.read(places[users])
        took_part[users] = columns.took_part(stored)
        values = columns.of(stored)
        some += int(values.any(1).sum())
        store.write(users, values)
    for name in store.tables:
        _carry_table(name, before, today, carried, places, took_part, state)
    store.commit()
    return some


class _Columns:
    """Where the columns of a user's row were and are."""

    def __init__(self, before: Kept, today: Kept, carried: Carried, state: Sequence[Tensor]) -> None:
        was, now = (_begins(kept) for kept in (before, today))
        old, new = before.layout, today.layout
        self._size, self._dtype = today.store.size, np.dtype(today.settings.dtype)
        self._took_part = was.get("took_part")
        self._copies: list[tuple[slice, Values]] = []
        self._moves: list[tuple[slice, slice]] = []
        if old.personal is not None and new.personal is not None:
            parameters = old.personal.parameters, new.personal.parameters
            self._move(carried, was["personal"], now["personal"], *parameters)
        place = now.get("kept", 0)
        for vector in new.kept:
            own = state[new.uploaded.index(vector)] - vector.starts(today.settings.torch_dtype)
            self._copies.append((slice(place, place + vector.size), own.cpu().numpy()))
            earlier = was.get("kept", 0)
            for other in old.kept:
                if alike(other.scope, vector.scope):
                    self._move(carried, earlier, place, other.parameters, vector.parameters)
                earlier += other.size
            place += vector.size
        if carried.same_foundation and "moments" in was and "moments" in now:
            for half in range(2):
                begins = was["moments"] + half * old.size, now["moments"] + half * new.size
                self._move(carried, *begins, tuple(old.parameters()), tuple(new.parameters()))
            rounds = was["moments"] + 2 * old.size, now["moments"] + 2 * new.size
            self._moves.append((slice(rounds[0], rounds[0] + 1), slice(rounds[1], rounds[1] + 1)))
        if "took_part" in was and "took_part" in now:
            self._moves.append((slice(was["took_part"], None), slice(now["took_part"], None)))

    def took_part(self, stored: Values) -> Bools:
        """Which users have own copies [users]."""
        if self._took_part is None:
            return np.zeros(len(stored), np.bool_)
        found: Bools = stored[:, self._took_part] != 0
        return found

    def of(self, stored: Values) -> Values:
        """Today's columns of users' rows [users, columns]."""
        found = np.zeros((len(stored), self._size), self._dtype)
        here = self.took_part(stored)
        for place, own in self._copies:
            found[here, place] = own
        for was, now in self._moves:
            found[:, now] = stored[:, was]
        return found

    def _move(
        self, carried: Carried, was: int, now: int, before: tuple[Parameter, ...], today: tuple[Parameter, ...]
    ) -> None:
        for source, target in carried.columns(before, today):
            self._moves.append(
                (slice(was + source.start, was + source.stop), slice(now + target.start, now + target.stop))
            )


def _begins(kept: Kept) -> dict[str, int]:
    """First column of each kind that there is."""
    found, place = {}, 0
    for kind, size in DeviceStore.columns(kept.layout, kept.settings).items():
        if size:
            found[kind] = place
        place += size
    return found


def _carry_table(
    name: str,
    before: Kept,
    today: Kept,
    carried: Carried,
    places: Ints,
    took_part: Bools,
    state: Sequence[Tensor],
) -> None:
    """Write what users keep of a table's rows that their training rows touch."""
    table, store = today.table(name), today.store.tables[name]
    width, scope = table.width, today.layout.scopes[name]
    starts = table.start.cpu().to(today.settings.torch_dtype)
    fresh = _from_server(table, today.layout, state) - starts if scope.keeps else None
    owner, ids = _pairs(today.touched[name])
    found = np.full(len(ids), -1)
    if name in carried.tables and name in before.store.tables:
        old_ids = carried.tables[name][ids]
        found = _find(places[owner], old_ids, *_pairs(before.touched[name]), before.table(name).rows)
        old_starts = before.table(name).start.cpu().to(before.settings.torch_dtype)
    spans = list(_table_spans(before, today, name, carried))
    for begin in range(0, len(ids), _ROWS):
        piece = slice(begin, begin + _ROWS)
        values = np.zeros((len(ids[piece]), store.size), np.dtype(today.settings.dtype))
        if fresh is not None:
            own = took_part[owner[piece]]
            values[own, :width] = fresh[torch.from_numpy(ids[piece][own])].numpy()
        hit = found[piece] >= 0
        if hit.any():
            stored = before.store.tables[name].read(found[piece][hit])
            for was, now in spans:
                values[hit, now] = stored[:, was]
            if name in carried.by_item and (scope.kind == "personal" or scope.keeps):
                here, there = torch.from_numpy(ids[piece][hit]), torch.from_numpy(old_ids[piece][hit])
                shift = (old_starts[there].double() - starts[here].double()).numpy()
                values[hit, :width] = np.where(shift == 0, values[hit, :width], values[hit, :width] + shift)
        store.write(np.arange(len(ids))[piece], values)


def _from_server(table: Table, layout: Layout, state: Sequence[Tensor]) -> Tensor:
    """A table's rows as the server has them [rows, width]."""
    index = next(i for i, vector in enumerate(layout.uploaded) if vector.table is table)
    return state[index].view(-1, table.width).cpu()


def _table_spans(before: Kept, today: Kept, name: str, carried: Carried) -> Iterator[tuple[slice, slice]]:
    """Columns of a table's stored rows, before and today: the row itself and, if both keep them, two moments."""
    width, scope = today.table(name).width, today.layout.scopes[name]
    own = width if scope.kind == "personal" or scope.keeps else 0
    if own:
        yield slice(0, own), slice(0, own)
    both = before.settings.keep_optimizer and today.settings.keep_optimizer
    if both and carried.same_foundation:
        yield slice(own, None), slice(own, None)


def _pairs(touched: TouchedRows) -> tuple[Ints, Ints]:
    """User and row of every (user, touched row) of the store, in its order."""
    count = np.diff(touched.pairs)
    owner = np.repeat(np.arange(len(count)), count)
    place = np.repeat(touched.begin - touched.pairs[:-1], count) + np.arange(len(owner))
    return owner, touched.ids[place]


def _find(users: Ints, ids: Ints, owner: Ints, known: Ints, rows: int) -> Ints:
    """Place of each (user, row) among known ones, -1 where it is not there."""
    keys, wanted = owner * rows + known, users * rows + ids
    order = np.argsort(keys, kind="stable")
    place = np.minimum(np.searchsorted(keys, wanted, sorter=order), max(0, len(keys) - 1))
    if not len(keys):
        return np.full(len(wanted), -1)
    place = order[place]
    return np.where((keys[place] == wanted) & (users >= 0) & (ids >= 0), place, -1)
