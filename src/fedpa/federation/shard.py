"""A shard does the whole of a round for its users and returns sums."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedpa.data.dataset import Dataset
from fedpa.errors import FedpaError
from fedpa.federation.device import DeviceStore
from fedpa.federation.local import LocalTrainer
from fedpa.federation.parameters import Table
from fedpa.federation.rows import Batch, ShardRows, group_values
from fedpa.federation.rule import AdaptedModel, LocalRule, Phase
from fedpa.federation.schedule import (
    VECTOR_ROWS,
    Chunk,
    chunks,
    halves,
    local_part,
    participants,
    row_block,
    shuffled_rows,
)
from fedpa.federation.server import FRACTION_BITS, TableRows, Upload, exact_product
from fedpa.federation.touched import TouchedRows
from fedpa.settings import Settings

__all__ = ["Shard"]

Ints = npt.NDArray[np.int64]
Values = npt.NDArray[np.floating]
_Result = TypeVar("_Result")
_USERS_PER_CHUNK = 512
_ROWS_PER_CHUNK = 8192
_ALL = 1 << 40


class _Limits(TypedDict):
    users_per_chunk: int
    rows_per_chunk: int


@dataclass(frozen=True)
class _Entries:
    """The touched rows of one table for the users of a chunk.

    ``ids`` [users, longest] are rows of the table, ``count`` [users] how many are real, and ``stored``
    [users, longest, columns] what the devices keep of them, zero where nothing.
    """

    table: Table
    ids: Tensor
    count: Ints
    stored: Values | None


class Shard:
    """Any number of users with their rows and personal parameters.

    Parameters
    ----------
    model : AdaptedModel
        On the shard's device.
    rows : ShardRows
    settings : Settings
    store : DeviceStore
        One row per user of `rows`; see `Shard.new_store`.
    seed : int
        The run's seed; with equal seeds any division into shards gives equal bytes.
    rule : LocalRule
        How devices train.
    users_per_chunk, rows_per_chunk : int
        Bounds of the working memory; they do not change any result.
    """

    def __init__(
        self,
        model: AdaptedModel,
        rows: ShardRows,
        settings: Settings,
        store: DeviceStore,
        *,
        seed: int,
        rule: LocalRule | None = None,
        users_per_chunk: int = _USERS_PER_CHUNK,
        rows_per_chunk: int = _ROWS_PER_CHUNK,
    ) -> None:
        self.model = model
        self.rows = rows
        self.settings = settings
        self.seed = seed
        self.device = rows.items.device
        self.dtype = settings.torch_dtype
        self.layout = model.layout
        self.rule = rule or LocalRule()
        self._limits = _Limits(users_per_chunk=users_per_chunk, rows_per_chunk=rows_per_chunk)
        self._phases, self._before = self.rule.phases(settings), self.rule.before_scoring(settings)
        self._trainers = [self._new_trainer()]
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
        self.touched = self.touched_rows(model, rows)
        self.store = store
        self._plans: dict[str, list[Chunk]] = {}

    @staticmethod
    def touched_rows(model: AdaptedModel, rows: ShardRows) -> dict[str, TouchedRows]:
        """Which rows of the model's tables the shard's users touch."""
        return {table.name: TouchedRows.of(table, rows) for table in model.layout.tables}

    @classmethod
    def new_store(cls, model: AdaptedModel, rows: ShardRows, settings: Settings, folder: Path) -> DeviceStore:
        """A store of zeros for a shard's users."""
        return DeviceStore.create(folder, model.layout, cls.touched_rows(model, rows), len(rows.users), settings)

    def round(self, state: Sequence[Tensor], number: int, downlink: Sequence[TableRows] = ()) -> Upload:
        """Train the round's participants and commit what their devices keep.

        Parameters
        ----------
        state : sequence of Tensor
            The server's state; see `fedpa.federation.server.Server`.
        number : int
            The round's number, for the draws.
        downlink : sequence of TableRows
            What single users receive beside it, each sorted by user and row.
        """
        everyone = np.flatnonzero(self.rows.train > 0)
        chosen = participants(self.seed, number, self.settings.participation, everyone, self.rows.keys)
        self.store.begin(chosen, self.touched)
        upload = Upload.empty(self.layout)
        tables = self._tables(state)
        plan = self._training_plan(chosen, everyone)
        for part in self._each(plan, lambda chunk, trainer: self._train(chunk, tables, number, downlink, trainer)):
            upload += part
        self.store.commit()
        return upload

    def scores(self, state: Sequence[Tensor]) -> npt.NDArray[np.floating]:
        """Click probabilities of all rows [rows], in the order of `rows`, for a server's state."""
        out = torch.empty(len(self.rows.row), dtype=self.dtype)
        tables = self._tables(state)
        if "score" not in self._plans:
            everyone = np.arange(len(self.rows.users))
            self._plans["score"] = self._scoring_plan(everyone, self.rows.total)

        def score(chunk: Chunk, trainer: LocalTrainer) -> None:
            self._prepare(chunk.users, chunk.real, tables, trainer, training=False)
            begin, total = self.rows.begin[chunk.users], self.rows.total[chunk.users]
            positions = torch.from_numpy(row_block(chunk, begin, total, 0, None)[0])
            with torch.inference_mode():
                blocks = self.layout.views(trainer.weights, trainer.lengths)
                logits, _ = self.model.forward(blocks, self._batch(chunk.users, positions.to(self.device)))
                out[positions.flatten()] = torch.sigmoid(logits).flatten().cpu()

        for _ in self._each(self._plans["score"], score):
            pass
        return out.numpy()

    def weights_of(self, users: Ints, state: Sequence[Tensor]) -> Tensor:
        """Flat parameters of users, by local number [users, size], as they score; tables are left out."""
        trainer = self._new_trainer()
        tables, found = self._tables(state), torch.empty(len(users), self.layout.size, dtype=self.dtype)
        for chunk in self._scoring_plan(users, np.ones(len(users), np.int64)):
            self._prepare(chunk.users, chunk.real, tables, trainer, training=False)
            place = torch.from_numpy(np.searchsorted(users, chunk.users[: chunk.real]))
            found[place] = trainer.weights[: chunk.real, : self.layout.size].cpu()
        return found.to(self.device)

    def weights_of_newcomer(self, number: int, dataset: Dataset, state: Sequence[Tensor]) -> Tensor:
        """Flat parameters [1, size] of any user of the data set: nothing personal, what the server sends."""
        weights = torch.empty(1, self.layout.size, dtype=self.dtype, device=self.device)
        values = {key: torch.tensor([v], device=self.device) for key, v in self.groups_of(number, dataset).items()}
        self._fill(weights, np.array([number]), values, self._tables(state), None, scoring=True)
        return weights

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
            whole = self._whole(table, state)
            if table.per == "user":
                rows = whole[table.ids(torch.from_numpy(numbers)).to(self.device)]
            else:
                rows = whole[None].expand(len(numbers), -1, -1)
            if users is not None and table.name in self.store.tables:
                touched = self.touched[table.name]
                ids, count = touched.padded(users, training=True)
                entries = self._entries_of(table, users, ids, count)
                own = self._rows_of(entries, self._tables(state), users, scoring=True)
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

    def _train(
        self,
        chunk: Chunk,
        tables: list[Tensor],
        number: int,
        downlink: Sequence[TableRows],
        trainer: LocalTrainer,
    ) -> Upload:
        users = chunk.users
        stored = self.store.read(users)
        entries = self._assemble(users, tables, trainer, stored, training=True)
        received = {one.table: self._received(one, users, entries) for one in downlink}
        trainer.start(number, received=received, distance=self._distance(trainer, stored, entries))
        if self.settings.keep_optimizer:
            self._load_moments(trainer, stored, entries)
        losses = self._run(chunk, trainer, self._phases, number, move_last=False)
        change = trainer.change[: chunk.real]
        self._keep(chunk, stored, change, tables, entries, trainer)
        return self._sums(users[: chunk.real], change, losses[: chunk.real], entries, trainer)

    def _run(
        self, chunk: Chunk, trainer: LocalTrainer, phases: Sequence[Phase], number: int, *, move_last: bool
    ) -> Tensor:
        """Do the phases of a device's round; returns the loss before the first step [users]."""
        rows, settings, users = self.rows, self.settings, chunk.users
        begin, count = rows.begin[users], rows.train[users]
        batch_size = settings.batch_size
        losses: Tensor | None = None
        order: Ints | None = None
        left = sum(phase.epochs * chunk.steps * len(phase.turns) for phase in phases)
        for place, phase in enumerate(phases):
            trainer.start_phase()
            half = halves(self.seed, number, rows.keys[users], count) if phase.rows != "all" else None
            for epoch in range(phase.epochs):
                if chunk.steps > 1:
                    order = shuffled_rows(self.seed, number, place * 1000 + epoch, rows.keys[users], count)
                for step in range(chunk.steps):
                    positions, real = row_block(chunk, begin, count, step, batch_size)
                    if order is not None:
                        within = np.minimum(positions - begin[:, None], order.shape[1] - 1)
                        positions = begin[:, None] + np.take_along_axis(order, within, axis=1)
                    weighted = local_part(real, positions - begin[:, None], half, phase.rows)
                    where = torch.from_numpy(positions).to(self.device)
                    row_weights = torch.from_numpy(weighted).to(self.device, self.dtype)
                    batch, labels = self._batch(users, where), rows.labels[where]
                    for turn in phase.turns:
                        left -= 1
                        last = left == 0 and not move_last
                        before = trainer.step(batch, labels, row_weights, last=last, turn=turn)
                        losses = before if losses is None else losses
        if losses is None:
            raise FedpaError("a round without steps was planned")
        return losses

    def _prepare(self, users: Ints, real: int, tables: list[Tensor], trainer: LocalTrainer, *, training: bool) -> None:
        """Fill the trainer's weights with what the users score with."""
        self._assemble(users, tables, trainer, self.store.read(users), training=training, scoring=True)
        if self._before:
            train = self.rows.train[users]
            plan = chunks(
                np.arange(len(users)),
                np.maximum(train, 1),
                batch_size=self.settings.batch_size,
                users_per_chunk=_ALL,
                rows_per_chunk=_ALL,
            )
            if len(plan) != 1:
                raise FedpaError("users with unlike training rows were planned into one chunk")
            with torch.enable_grad():
                trainer.start(0)
                self._run(replace(plan[0], users=users, real=real), trainer, self._before, 0, move_last=True)

    def _sums(
        self, users: Ints, change: Tensor, losses: Tensor, entries: Sequence[_Entries], trainer: LocalTrainer
    ) -> Upload:
        """Sum what is uploaded, as integers; nothing else leaves."""
        unit = 2.0 ** FRACTION_BITS[self.dtype]
        count = self.rows.train[users]
        counts = count if self.settings.weighting == "rows" else np.ones_like(count)
        weight = torch.from_numpy(counts).to(self.device)
        low, high = (float(x) * unit for x in change.aminmax()) if change.numel() else (0.0, 0.0)
        upload = Upload.empty(self.layout)
        upload.bound = max(-low, high) * float(counts.sum()) if np.isfinite(low + high) else float("inf")
        upload.check()
        spans = dict(zip(self._table_starts, self.layout.table_spans(trainer.lengths), strict=True))
        by_name = {entry.table.name: entry for entry in entries}
        for index, vector in enumerate(self.layout.uploaded):
            if vector.scope.kind == "shared":
                member = weight[None]
            else:
                value = self.rows.groups[str(vector.scope.key)][torch.from_numpy(users).to(self.device)]
                member = (value == torch.arange(vector.values, device=self.device)[:, None]) * weight
            upload.weights[index] = member.sum(1).cpu()
            upload.weights_up += vector.size * int((member > 0).any(0).sum())
            if vector.table is not None:
                span, entry = spans[vector.table.name], by_name[vector.table.name]
                real = torch.from_numpy(np.arange(entry.ids.shape[1]) < entry.count[: len(users), None])
                rows = change[:, span.begin : span.end].unflatten(1, (-1, vector.table.width))[real.to(self.device)]
                ids = entry.ids[: len(users)][real.to(self.device)]
                times = weight.repeat_interleave(torch.from_numpy(entry.count[: len(users)]).to(self.device))
                units = (rows.double() * unit).round_().to(torch.int64) * times[:, None]
                upload.sums[index].view(-1, vector.table.width).index_add_(0, ids.cpu(), units.cpu())
                if vector.scope.sees == "rows":
                    owner = np.repeat(self.rows.users[users], entry.count[: len(users)])
                    upload.seen += (TableRows(vector.table.name, owner, ids.cpu().numpy(), rows.clone().cpu()),)
                continue
            units = trainer.room[: len(users) * vector.size].view(len(users), -1)
            for moved, into in vector.pairs(change, units):
                into.copy_(moved)
            upload.sums[index] = exact_product(member, units.mul_(unit).round_(), upload.bound).cpu()
        upload.participants = len(users)
        upload.rows = int(count.sum())
        upload.loss = int((losses.double() * unit).round().to(torch.int64).sum())
        return upload

    def _each(self, plan: list[Chunk], work: Callable[[Chunk, LocalTrainer], _Result]) -> Iterator[_Result]:
        """Do chunks side by side, one worker per thread that PyTorch may use; one thread per operation.

        Small products gain nothing from two threads and lose much to waiting for each other; whole chunks share
        nothing, and their sums are exact, so their order does not matter.
        """
        threads = torch.get_num_threads() if self.device.type == "cpu" else 1
        if threads == 1 or len(plan) < 2:
            yield from (work(chunk, self._trainers[0]) for chunk in plan)
            return
        free: queue.SimpleQueue[LocalTrainer] = queue.SimpleQueue()
        while len(self._trainers) < threads:
            self._trainers.append(self._new_trainer())
        for trainer in self._trainers[:threads]:
            free.put(trainer)

        def one(chunk: Chunk) -> _Result:
            trainer = free.get()
            try:
                return work(chunk, trainer)
            finally:
                free.put(trainer)

        torch.set_num_threads(1)
        try:
            with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                yield from pool.map(one, plan)
        finally:
            torch.set_num_threads(threads)

    def _new_trainer(self) -> LocalTrainer:
        users = self._limits["users_per_chunk"] + VECTOR_ROWS
        return LocalTrainer(self.model, self.rule, self.settings, users, self.device)

    def _tables(self, state: Sequence[Tensor]) -> list[Tensor]:
        """The state on the device; group tables end in a row of zeros for users of unknown value."""
        return [
            rows.to(self.device)
            if vector.scope.kind == "shared"
            else torch.cat([rows, rows.new_zeros(1, vector.size)]).to(self.device)
            for vector, rows in zip(self.layout.uploaded, state, strict=True)
        ]

    def _whole(self, table: Table, state: Sequence[Tensor]) -> Tensor:
        """All rows of a table as the server has them, or as everybody starts [rows, width]."""
        if table.name in self._states:
            return state[self._states[table.name]].view(-1, table.width)
        return self._table_starts[table.name]

    def _batch(self, users: Ints, positions: Tensor) -> Batch:
        batch = self.rows.batch(users, positions)
        slots = {name: t.slots[positions] for name, t in self.touched.items() if t.slots is not None}
        return replace(batch, slots=slots) if slots else batch

    def _entries_of(self, table: Table, users: Ints, ids: Ints, count: Ints) -> _Entries:
        stored = self.store.read_table(table.name, self.touched[table.name], users, ids.shape[1])
        return _Entries(table, torch.from_numpy(ids).to(self.device), count, stored)

    def _assemble(
        self,
        users: Ints,
        tables: list[Tensor],
        trainer: LocalTrainer,
        stored: Values,
        *,
        training: bool,
        scoring: bool = False,
    ) -> list[_Entries]:
        """Fill the trainer's weights for some users; returns the touched rows of each table."""
        entries = [
            self._entries_of(table, users, *self.touched[table.name].padded(users, training=training))
            for table in self.layout.tables
        ]
        lengths = [entry.ids.shape[1] for entry in entries]
        trainer.fit(len(users), lengths)
        values = {key: table[torch.from_numpy(users).to(self.device)] for key, table in self.rows.groups.items()}
        self._fill(trainer.weights, self.rows.users[users], values, tables, stored, scoring=scoring)
        for entry, span in zip(entries, self.layout.table_spans(lengths), strict=True):
            into = trainer.weights[:, span.begin : span.end].unflatten(1, (-1, entry.table.width))
            into.copy_(self._rows_of(entry, tables, users, scoring=scoring, stored_users=stored))
        return entries

    def _rows_of(
        self,
        entry: _Entries,
        tables: Sequence[Tensor],
        users: Ints,
        *,
        scoring: bool,
        stored_users: Values | None = None,
    ) -> Tensor:
        """A table's touched rows as the users have them [users, longest, width]."""
        scope, width = self.layout.scopes[entry.table.name], entry.table.width
        rows = self._whole(entry.table, tables)[entry.ids]
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

    def _trained(self, entry: _Entries, users: Ints) -> Ints:
        return self.touched[entry.table.name].trained[users]

    def _fill(
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

    def _distance(self, trainer: LocalTrainer, stored: Values, entries: Sequence[_Entries]) -> Tensor | None:
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

    def _received(self, sent: TableRows, users: Ints, entries: Sequence[_Entries]) -> Tensor:
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

    def _load_moments(self, trainer: LocalTrainer, stored: Values, entries: Sequence[_Entries]) -> None:
        size, begin = self.layout.size, self._columns["personal"] + self._columns["kept"]
        dense = torch.from_numpy(stored[:, begin : begin + 2 * size + 1]).to(self.device)
        trainer.steps.copy_(dense[:, -1:])
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

    def _keep(
        self,
        chunk: Chunk,
        stored: Values,
        change: Tensor,
        tables: list[Tensor],
        entries: Sequence[_Entries],
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
            for moment in (*trainer.moments, trainer.steps):
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
                difference = self._whole(entry.table, tables)[ids] - self._table_starts[name][ids]
                own[..., :width] = (difference + moved).cpu()
            if self.settings.keep_optimizer:
                for place, moment in enumerate(trainer.moments):
                    first = own.shape[2] - (2 - place) * width
                    mine = moment[:real, span.begin : span.end].unflatten(1, (-1, width))
                    own[..., first : first + width] = mine.cpu()
            self.store.write_table(name, self.touched[name], users, entry.stored[:real])

    def _training_plan(self, chosen: Ints, everyone: Ints) -> list[Chunk]:
        if len(chosen) < len(everyone):
            return self._plan(chosen)
        if "train" not in self._plans:
            self._plans["train"] = self._plan(everyone)
        return self._plans["train"]

    def _plan(self, users: Ints) -> list[Chunk]:
        return chunks(users, self.rows.train[users], batch_size=self.settings.batch_size, **self._limits)

    def _scoring_plan(self, users: Ints, rows: Ints) -> list[Chunk]:
        """Chunks to score `rows` rows of each user; where devices train first, of users who train alike."""
        train = np.maximum(self.rows.train[users], 1) if self._before else None
        batch = self.settings.batch_size
        return chunks(users, rows, batch_size=None, train=train, train_batch=batch, **self._limits)
