"""A shard does the whole of a round for its users and returns sums."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TypedDict, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedpa.data.dataset import Dataset
from fedpa.errors import FedpaError
from fedpa.federation.assembly import Assembly, Entries
from fedpa.federation.device import DeviceStore
from fedpa.federation.local import LocalTrainer
from fedpa.federation.rows import Batch, ShardRows
from fedpa.federation.rule import AdaptedModel, LocalRule, Phase, scored
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
from fedpa.federation.server import FRACTION_BITS, TableRows, Upload, exact_product, vector_name
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
        self._labels = rows.labels if rows.every_label is None else rows.every_label
        self.device = rows.items.device
        self.dtype = settings.torch_dtype
        self.layout = model.layout
        self.rule = rule or LocalRule()
        self._limits = _Limits(users_per_chunk=users_per_chunk, rows_per_chunk=rows_per_chunk)
        self._phases, self._before = self.rule.phases(settings), self.rule.before_scoring(settings)
        self._trainers = [self._new_trainer()]
        self.touched = self.touched_rows(model, rows)
        self.store = store
        self.assembly = Assembly(model, self.rule, rows, settings, store, self.touched)
        self._plans: dict[str, list[Chunk]] = {}

    @staticmethod
    def touched_rows(model: AdaptedModel, rows: ShardRows) -> dict[str, TouchedRows]:
        """Which rows of the model's tables the shard's users touch."""
        return {table.name: TouchedRows.of(table, rows) for table in model.layout.tables}

    @classmethod
    def new_store(
        cls, model: AdaptedModel, rows: ShardRows, settings: Settings, folder: Path, *, sync: bool = False
    ) -> DeviceStore:
        """A store of zeros for a shard's users; see `DeviceStore.create`."""
        touched = cls.touched_rows(model, rows)
        return DeviceStore.create(folder, model.layout, touched, len(rows.users), settings, sync=sync)

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
        self.store.begin(chosen, self.touched, number)
        upload = Upload.empty(self.layout, self.settings)
        tables = self.assembly.tables(state)
        plan = self._training_plan(chosen, everyone)
        for part in self._each(plan, lambda chunk, trainer: self._train(chunk, tables, number, downlink, trainer)):
            upload += part
        self.store.commit()
        return upload

    def scores(self, state: Sequence[Tensor]) -> npt.NDArray[np.floating]:
        """Click probabilities of all rows [rows], in the order of `rows`, for a server's state."""
        out = torch.empty(len(self.rows.row), dtype=self.dtype)
        tables = self.assembly.tables(state)
        if "score" not in self._plans:
            everyone = np.arange(len(self.rows.users))
            self._plans["score"] = self._scoring_plan(everyone, self.rows.total)

        def score(chunk: Chunk, trainer: LocalTrainer) -> None:
            self._prepare(chunk.users, chunk.real, tables, trainer)
            begin, total = self.rows.begin[chunk.users], self.rows.total[chunk.users]
            block, real = row_block(chunk, begin, total, 0, None)
            positions = torch.from_numpy(block)
            with torch.inference_mode():
                blocks = self.layout.views(trainer.weights, trainer.lengths)
                logits, _ = self.model.forward(blocks, self._batch(chunk.users, positions.to(self.device), real))
                out[positions.flatten()] = torch.sigmoid(scored(logits)).flatten().cpu()

        for _ in self._each(self._plans["score"], score):
            pass
        if not torch.isfinite(out).all():
            raise FedpaError("training diverged: scores are not finite", "lower the learning rate")
        return out.numpy()

    def weights_of(self, users: Ints, state: Sequence[Tensor]) -> Tensor:
        """Flat parameters of users, by local number [users, size], as they score; tables are left out."""
        trainer = self._new_trainer()
        tables, found = self.assembly.tables(state), torch.empty(len(users), self.layout.size, dtype=self.dtype)
        for chunk in self._scoring_plan(users, np.ones(len(users), np.int64)):
            self._prepare(chunk.users, chunk.real, tables, trainer)
            place = torch.from_numpy(np.searchsorted(users, chunk.users[: chunk.real]))
            found[place] = trainer.weights[: chunk.real, : self.layout.size].cpu()
        return found.to(self.device)

    def weights_of_newcomer(self, number: int, dataset: Dataset, state: Sequence[Tensor]) -> Tensor:
        """Flat parameters [1, size] of any user of the data set: nothing personal, what the server sends."""
        weights = torch.empty(1, self.layout.size, dtype=self.dtype, device=self.device)
        groups = self.assembly.groups_of(number, dataset)
        values = {key: torch.tensor([value], device=self.device) for key, value in groups.items()}
        self.assembly.fill(weights, np.array([number]), values, self.assembly.tables(state), None, scoring=True)
        return weights

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
        entries = self.assembly.assemble(users, tables, trainer, stored, scoring=False)
        received = {one.table: self.assembly.received(one, users, entries) for one in downlink}
        count = torch.from_numpy(self.rows.train[users, None]).to(self.device, self.dtype)
        distance = self.assembly.distance(trainer, stored, entries)
        trainer.start(number, received=received, distance=distance, rows=count, batches=chunk.steps)
        if self.settings.keep_optimizer:
            self.assembly.load_moments(trainer, stored, entries)
        losses = self._run(chunk, trainer, self._phases, number, move_last=False)
        change = trainer.change[: chunk.real]
        self.assembly.keep(chunk, stored, change, tables, entries, trainer)
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
                    batch, labels = self._batch(users, where, real), self._labels[where]
                    for turn in phase.turns:
                        left -= 1
                        last = left == 0 and not move_last
                        before = trainer.step(batch, labels, row_weights, last=last, turn=turn)
                        losses = before if losses is None else losses
        if losses is None:
            raise FedpaError("a round without steps was planned")
        return losses

    def _prepare(self, users: Ints, real: int, tables: list[Tensor], trainer: LocalTrainer) -> None:
        """Fill the trainer's weights with what the users score with."""
        stored = self.store.read(users)
        entries = self.assembly.assemble(users, tables, trainer, stored, scoring=True)
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
                count = torch.from_numpy(np.maximum(train, 1)[:, None]).to(self.device, self.dtype)
                trainer.start(0, distance=self.assembly.distance(trainer, stored, entries), rows=count)
                self._run(replace(plan[0], users=users, real=real), trainer, self._before, 0, move_last=True)

    def _sums(
        self, users: Ints, change: Tensor, losses: Tensor, entries: Sequence[Entries], trainer: LocalTrainer
    ) -> Upload:
        """Sum what is uploaded, as integers; nothing else leaves."""
        unit = 2.0 ** FRACTION_BITS[self.dtype]
        count = self.rows.train[users]
        counts = count if self.settings.weighting == "rows" else np.ones_like(count)
        weight = torch.from_numpy(counts).to(self.device)
        upload = Upload.empty(self.layout, self.settings)
        if change.numel() and not np.isfinite(sum(float(end) for end in change.aminmax())):
            upload.bound = float("inf")
            upload.check()
        places = dict(zip((e.table.name for e in entries), self.layout.table_spans(trainer.lengths), strict=True))
        by_name = {entry.table.name: entry for entry in entries}
        for index, vector in enumerate(self.layout.uploaded):
            if vector.table is not None:
                span, entry = places[vector.table.name], by_name[vector.table.name]
                self._sum_table(upload, index, users, weight, entry, change[:, span.begin : span.end])
                continue
            if vector.scope.kind == "shared":
                member = weight[None]
            else:
                value = self.rows.groups[str(vector.scope.key)][torch.from_numpy(users).to(self.device)]
                member = (value == torch.arange(vector.values, device=self.device)[:, None]) * weight
            upload.weights[index] = member.sum(1).cpu()
            upload.weights_up += vector.size * int((member > 0).any(0).sum())
            units = trainer.room[: len(users) * vector.size].view(len(users), -1)
            largest = 0.0
            for moved, into in vector.pairs(change, units):
                into.copy_(moved)
                largest = max(largest, *(abs(float(end)) for end in moved.aminmax()))
            upload.limit(largest * unit * float(counts.sum()))
            upload.sums[index] = exact_product(member, units.mul_(unit).round_(), upload.bound).cpu()
            if vector.scope.sees == "rows":
                who, value = (member.T > 0).cpu().nonzero(as_tuple=True)
                own = vector.take(change[who.to(self.device)]).cpu()
                upload.seen += (
                    TableRows(vector_name(vector), self.rows.users[users[who.numpy()]], value.numpy(), own),
                )
        upload.weights_down += upload.weights_up
        for vector in self.layout.uploaded:
            if vector.table is not None and self.settings.table_mean == "touched":
                upload.weights_down -= vector.table.rows * len(users)  # the counts beside a table go up only
        upload.participants = len(users)
        upload.rows = int(count.sum())
        upload.loss = int((losses.double() * unit).round().to(torch.int64).sum())
        return upload

    def _sum_table(
        self, upload: Upload, index: int, users: Ints, weight: Tensor, entry: Entries, change: Tensor
    ) -> None:
        """Add the touched rows of a table to the whole table; on the wire it is whole for everybody."""
        table, scope = entry.table, self.layout.uploaded[index].scope
        unit = 2.0 ** FRACTION_BITS[self.dtype]
        count = entry.count[: len(users)]
        real = torch.from_numpy(np.arange(entry.ids.shape[1]) < count[:, None]).to(self.device)
        rows, ids = change.unflatten(1, (-1, table.width))[real], entry.ids[: len(users)][real].cpu()
        times = weight.repeat_interleave(torch.from_numpy(count).to(self.device)).cpu()
        units = (rows.double() * unit).round_().cpu()
        bounds = torch.zeros(table.rows, dtype=torch.float64)
        bounds.index_add_(0, ids, units.abs().amax(1) * times)
        upload.limit(float(bounds.max()))
        upload.sums[index].view(-1, table.width).index_add_(0, ids, units.to(torch.int64) * times[:, None])
        upload.weights_up += table.rows * table.width * len(users)
        if self.settings.table_mean == "touched":
            upload.weights[index].index_add_(0, ids, times)
            upload.weights_up += table.rows * len(users)
        else:
            upload.weights[index] = weight.sum()[None].cpu()
        if scope.sees == "rows":
            owner = np.repeat(self.rows.users[users], count)
            upload.seen += (TableRows(table.name, owner, ids.numpy(), rows.clone().cpu()),)

    def _each(self, plan: list[Chunk], work: Callable[[Chunk, LocalTrainer], _Result]) -> Iterator[_Result]:
        """Do chunks side by side, one worker per thread that PyTorch may use; one thread per operation.

        Small products gain nothing from two threads and lose much to waiting for each other, and some have other bits
        on two; whole chunks share nothing, and their sums are exact, so their order does not matter.
        """
        threads = torch.get_num_threads() if self.device.type == "cpu" else 1
        if threads == 1 or not plan:
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

    def _batch(self, users: Ints, positions: Tensor, real: Ints) -> Batch:
        slots = {name: t.slots[positions] for name, t in self.touched.items() if t.slots is not None}
        return replace(self.rows.batch(users, positions), slots=slots, real=torch.from_numpy(real))

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
