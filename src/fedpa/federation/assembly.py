"""Fills the users' flat vectors with what the server sent and what devices keep, and writes back what they keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedpa.data.dataset import Dataset
from fedpa.federation.device import DeviceStore
from fedpa.federation.local import LocalTrainer
from fedpa.federation.parameters import Table
from fedpa.federation.rows import ShardRows, group_values
from fedpa.federation.rule import AdaptedModel, LocalRule
from fedpa.federation.schedule import Chunk
from fedpa.federation.server import TableRows
from fedpa.federation.touched import TouchedRows
from fedpa.settings import Settings

__all__ = ["Assembly", "Entries"]

Ints = npt.NDArray[np.int64]
Values = npt.NDArray[np.floating]


@dataclass(frozen=True)
class Entries:
    """The touched rows of one table for the users of a chunk.

    ``ids`` [users, longest] are rows of the table, ``count`` [users] how many are real, and ``stored``
    [users, longest, columns] what the devices keep of them, zero where nothing.
    """

    table: Table
    ids: Tensor
    count: Ints
    stored: Values | None


class Assembly:
    """The parameters of a shard's users, put together and taken apart by scope.

    Parameters
    ----------
    model : AdaptedModel
    rule : LocalRule
    rows : ShardRows
    settings : Settings
    store : DeviceStore
    touched : dict
        By table which rows of it the users touch.
    """

    def __init__(
        self,
        model: AdaptedModel,
        rule: LocalRule,
        rows: ShardRows,
        settings: Settings,
        store: DeviceStore,
        touched: Mapping[str, TouchedRows],
    ) -> None:
        self.rows, self.settings, self.rule, self.store, self.touched = rows, settings, rule, store, touched
        self.layout = model.layout
        self.device, self.dtype = rows.items.device, settings.torch_dtype
        personal = self.layout.personal.parameters if self.layout.personal else ()
        self._starts = [(self.layout.places[p.name], p.start) for p in personal if callable(p.start) or p.start.any()]
        self._frozen = [(vector, vector.starts(self.dtype).to(self.device)) for vector in self.layout.frozen]
        self._kept = [
            (self.layout.uploaded.index(vector), vector, vector.starts(self.dtype).to(self.device))
            for vector in self.layout.kept
        ]
        self._table_starts = {t.name: t.start.to(self.device, self.dtype) for t in self.layout.tables}
        self._states = {v.table.name: i for i, v in enumerate(self.layout.uploaded) if v.table is not None}
        self._columns = DeviceStore.columns(self.layout, settings)

    def tables(self, state: Sequence[Tensor]) -> list[Tensor]:
        """The state on the device; group tables end in a row of zeros for users of unknown value."""
        return [
            rows.to(self.device)
            if vector.scope.kind == "shared"
            else torch.cat([rows, rows.new_zeros(1, vector.size)]).to(self.device)
            for vector, rows in zip(self.layout.uploaded, state, strict=True)
        ]

    def whole(self, table: Table, state: Sequence[Tensor]) -> Tensor:
        """All rows of a table as the server has them, or as everybody starts [rows, width]."""
        if table.name in self._states:
            return state[self._states[table.name]].view(-1, table.width)
        return self._table_starts[table.name]

    def _entries_of(self, table: Table, users: Ints, ids: Ints, count: Ints) -> Entries:
        stored = self.store.read_table(table.name, self.touched[table.name], users, ids.shape[1])
        return Entries(table, torch.from_numpy(ids).to(self.device), count, stored)

    def assemble(
        self,
        users: Ints,
        tables: list[Tensor],
        trainer: LocalTrainer,
        stored: Values,
        *,
        scoring: bool,
    ) -> list[Entries]:
        """Fill the trainer's weights for some users; returns the touched rows of each table.

        To train, those of training rows and what was downloaded; to score, those of all rows and what devices keep.
        """
        entries = [
            self._entries_of(table, users, *self.touched[table.name].padded(users, training=not scoring))
            for table in self.layout.tables
        ]
        lengths = [entry.ids.shape[1] for entry in entries]
        trainer.fit(len(users), lengths)
        values = {key: table[torch.from_numpy(users).to(self.device)] for key, table in self.rows.groups.items()}
        self.fill(trainer.weights, self.rows.users[users], values, tables, stored, scoring=scoring)
        for entry, span in zip(entries, self.layout.table_spans(lengths), strict=True):
            into = trainer.weights[:, span.begin : span.end].unflatten(1, (-1, entry.table.width))
            into.copy_(self._rows_of(entry, tables, users, scoring=scoring, stored_users=stored))
        return entries

    def fill(
        self,
        weights: Tensor,
        numbers: Ints,
        values: Mapping[str, Tensor],
        tables: list[Tensor],
        stored: Values | None,
        *,
        scoring: bool,
    ) -> None:
        """Fill flat parameters: what the server sent beside what each user keeps (None: nothing yet)."""
        for vector, table in zip(self.layout.uploaded, tables, strict=True):
            if vector.table is not None:
                continue
            if vector.scope.kind == "shared":
                vector.put(weights, table)
            else:
                row = values[str(vector.scope.key)] % len(table)  # -1, an unknown value, takes the last row, of zeros
                for into, rows in vector.pairs(weights, table):
                    torch.index_select(rows, 0, row, out=into)
        for vector, frozen in self._frozen:
            vector.put(weights, frozen)
        if self.layout.personal is not None:
            where = torch.from_numpy(numbers).to(self.device)
            vector = self.layout.personal
            if stored is None or self.rule.forgets_personal:
                vector.put(weights, weights.new_zeros(1, vector.size))
            else:
                vector.put(weights, torch.from_numpy(stored[:, : vector.size]))
            for span, start in self._starts:
                weights[:, span.begin : span.end] += start(where).flatten(1) if callable(start) else start.flatten()
        if scoring and stored is not None and self._kept:
            took_part = torch.from_numpy(stored[:, -1] != 0).to(self.device)[:, None]
            position = self.layout.personal_size
            for _, vector, origin in self._kept:
                own = torch.from_numpy(stored[:, position : position + vector.size]).to(self.device) + origin
                vector.put(weights, torch.where(took_part, own, vector.take(weights)))
                position += vector.size

    def _rows_of(
        self,
        entry: Entries,
        tables: Sequence[Tensor],
        users: Ints,
        *,
        scoring: bool,
        stored_users: Values | None = None,
    ) -> Tensor:
        """A table's touched rows as the users have them [users, longest, width]."""
        scope, width = self.layout.scopes[entry.table.name], entry.table.width
        rows = self.whole(entry.table, tables)[entry.ids]
        if entry.stored is None:
            return rows
        own = torch.from_numpy(entry.stored[..., :width]).to(self.device)
        if scope.kind == "personal":
            return rows + own
        if scope.keeps and scoring:
            columns = self.store.read(users) if stored_users is None else stored_users
            took_part = torch.from_numpy(columns[:, -1] != 0).to(self.device)[:, None, None]
            trained = torch.from_numpy(np.arange(entry.ids.shape[1]) < self._trained(entry, users)[:, None])
            return torch.where(
                took_part & trained.to(self.device)[..., None],
                self._table_starts[entry.table.name][entry.ids] + own,
                rows,
            )
        return rows

    def _trained(self, entry: Entries, users: Ints) -> Ints:
        return self.touched[entry.table.name].trained[users]

    def distance(self, trainer: LocalTrainer, stored: Values, entries: Sequence[Entries]) -> Tensor | None:
        """How far what is personal has moved from its start [users, width]; None where nothing asks for it."""
        if not self.settings.personal_decay:
            return None
        distance = torch.zeros_like(trainer.weights)
        if self.layout.personal is not None and not self.rule.forgets_personal:
            self.layout.personal.put(distance, torch.from_numpy(stored[:, : self.layout.personal_size]))
        for entry, span in zip(entries, self.layout.table_spans(trainer.lengths), strict=True):
            if self.layout.scopes[entry.table.name].kind == "personal" and entry.stored is not None:
                own = torch.from_numpy(entry.stored[..., : entry.table.width])
                distance[:, span.begin : span.end] = own.flatten(1).to(self.device)
        return distance

    def received(self, sent: TableRows, users: Ints, entries: Sequence[Entries]) -> Tensor:
        """What the server sent to these very users, for their touched rows [users, longest, width]."""
        entry = next(entry for entry in entries if entry.table.name == sent.table)
        rows = entry.table.rows
        known = sent.users * rows + sent.ids
        wanted = self.rows.users[users][:, None] * rows + entry.ids.cpu().numpy()
        place = np.minimum(np.searchsorted(known, wanted), max(0, len(known) - 1))
        found = torch.zeros(*wanted.shape, entry.table.width, dtype=self.dtype)
        if len(known):
            hit = torch.from_numpy(known[place] == wanted)
            found[hit] = sent.values[torch.from_numpy(place)[hit]].to(self.dtype)
        return found.to(self.device)

    def load_moments(self, trainer: LocalTrainer, stored: Values, entries: Sequence[Entries]) -> None:
        """Give the trainer the moments that the devices keep."""
        size, begin = self.layout.size, self._columns["personal"] + self._columns["kept"]
        dense = torch.from_numpy(stored[:, begin : begin + 2 * size + 1]).to(self.device)
        trainer.rounds.copy_(dense[:, -1:])
        for moment, values in zip(trainer.moments, (dense[:, :size], dense[:, size : 2 * size]), strict=True):
            moment[:, :size] = values
        for entry, span in zip(entries, self.layout.table_spans(trainer.lengths), strict=True):
            for place, moment in enumerate(trainer.moments):
                into = moment[:, span.begin : span.end].unflatten(1, (-1, entry.table.width))
                if entry.stored is None:
                    into.zero_()
                else:
                    first = entry.stored.shape[2] - (2 - place) * entry.table.width
                    into.copy_(torch.from_numpy(entry.stored[..., first : first + entry.table.width]))

    def keep(
        self,
        chunk: Chunk,
        stored: Values,
        change: Tensor,
        tables: list[Tensor],
        entries: Sequence[Entries],
        trainer: LocalTrainer,
    ) -> None:
        """Write what is stored of the users, changed by their round; `stored` is overwritten."""
        users, real = chunk.users[: chunk.real], chunk.real
        layout, columns = self.layout, torch.from_numpy(stored[:real])
        if layout.personal is not None and not self.rule.forgets_personal:
            for moved, into in layout.personal.pairs(change, columns[:, : layout.personal_size]):
                into.add_(moved.cpu())
        position = layout.personal_size
        for index, vector, start in self._kept:
            columns[:, position : position + vector.size] = (tables[index] + vector.take(change) - start).cpu()
            position += vector.size
        if self.settings.keep_optimizer:
            for moment in (*trainer.moments, trainer.rounds + 1):
                wide = min(layout.size, moment.shape[1])
                columns[:, position : position + wide] = moment[:real, :wide].cpu()
                position += wide
        if self._columns["took_part"]:
            columns[:, -1] = 1
        if self.store.size:
            self.store.write(users, stored[:real])
        for entry, span in zip(entries, layout.table_spans(trainer.lengths), strict=True):
            if entry.stored is None:
                continue
            name, width = entry.table.name, entry.table.width
            own = torch.from_numpy(entry.stored[:real])
            moved = change[:, span.begin : span.end].unflatten(1, (-1, width))
            if layout.scopes[name].kind == "personal":
                own[..., :width] += moved.cpu()
            elif layout.scopes[name].keeps:
                ids = entry.ids[:real]
                difference = self.whole(entry.table, tables)[ids] - self._table_starts[name][ids]
                own[..., :width] = (difference + moved).cpu()
            if self.settings.keep_optimizer:
                for place, moment in enumerate(trainer.moments):
                    first = own.shape[2] - (2 - place) * width
                    mine = moment[:real, span.begin : span.end].unflatten(1, (-1, width))
                    own[..., first : first + width] = mine.cpu()
            self.store.write_table(name, self.touched[name], users, entry.stored[:real])

    def catalogue(
        self, weights: Tensor, users: Ints | None, numbers: Ints, state: Sequence[Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Table]]:
        """Blocks for scoring any rows: tables whole, so that an id is its own slot.

        Parameters
        ----------
        weights : Tensor
            Flat parameters [users, size] of `weights_of` or `weights_of_newcomer`.
        users : ndarray or None
            Local numbers of the users; None where they are not of this shard.
        numbers : ndarray
            User numbers of the data set [users].
        state : sequence of Tensor

        Returns
        -------
        blocks : dict of str to Tensor
        tables : dict of str to Table
            Those whose slots a batch must name.
        """
        blocks = self.layout.views(weights)
        for table in self.layout.tables:
            whole = self.whole(table, state)
            if table.per == "user":
                rows = whole[table.ids(torch.from_numpy(numbers)).to(self.device)]
            else:
                rows = whole[None].expand(len(numbers), -1, -1)
            if users is not None and table.name in self.store.tables:
                touched = self.touched[table.name]
                ids, count = touched.padded(users, training=True)
                entries = self._entries_of(table, users, ids, count)
                own = self._rows_of(entries, self.tables(state), users, scoring=True)
                if table.per == "user":
                    rows = own
                else:
                    rows = rows.clone()
                    real = torch.from_numpy(np.arange(ids.shape[1]) < count[:, None])
                    place = real.nonzero(as_tuple=True)
                    rows[place[0], entries.ids[real]] = own[real]
            blocks[table.name] = rows
        return blocks, {table.name: table for table in self.layout.tables if table.per == "row"}

    def groups_of(self, number: int, dataset: Dataset) -> dict[str, int]:
        """A user's value of every group that the method averages in, -1 where unknown."""
        keys = {str(vector.scope.key) for vector in self.layout.uploaded if vector.scope.kind == "group"}
        return {key: int(codes[number]) for key, codes in group_values(dataset).items() if key in keys}
