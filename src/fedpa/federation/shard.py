"""A shard does the whole of a round for its users and returns sums."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedpa.data.dataset import Dataset
from fedpa.errors import FedpaError
from fedpa.federation.local import AdaptedModel, LocalTrainer, Loss, click_loss
from fedpa.federation.rows import ShardRows, group_values
from fedpa.federation.schedule import VECTOR_ROWS, Chunk, chunks, participants, row_block, shuffled_rows, steps_of
from fedpa.federation.server import FRACTION_BITS, Upload, exact_product
from fedpa.federation.store import PersonalStore
from fedpa.settings import Settings

__all__ = ["Shard"]

Ints = npt.NDArray[np.int64]
_Result = TypeVar("_Result")
_USERS_PER_CHUNK = 512
_ROWS_PER_CHUNK = 8192


class Shard:
    """Any number of users with their rows and personal parameters.

    Parameters
    ----------
    model : AdaptedModel
        On the shard's device.
    rows : ShardRows
    settings : Settings
    store : PersonalStore
        One row per user of `rows`; see `Shard.new_store`.
    seed : int
        The run's seed; with equal seeds any division into shards gives equal bytes.
    loss : callable
        Local loss; see `fedpa.federation.local.click_loss`.
    users_per_chunk, rows_per_chunk : int
        Bounds of the working memory; they do not change any result.
    """

    def __init__(
        self,
        model: AdaptedModel,
        rows: ShardRows,
        settings: Settings,
        store: PersonalStore,
        *,
        seed: int,
        loss: Loss = click_loss,
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
        self._limits = {"users_per_chunk": users_per_chunk, "rows_per_chunk": rows_per_chunk}
        self._loss = loss
        self._trainers = [self._new_trainer()]
        personal = self.layout.personal.parameters if self.layout.personal else ()
        self._starts = [(self.layout.places[p.name], p.start) for p in personal if callable(p.start) or p.start.any()]
        self.store = store
        self._plans: dict[str, list[Chunk]] = {}

    @staticmethod
    def new_store(model: AdaptedModel, rows: ShardRows, settings: Settings, folder: Path) -> PersonalStore:
        """A store of zeros for a shard's users; its header names the columns."""
        layout = model.layout
        personal = layout.personal.parameters if layout.personal else ()
        columns = {p.name: "x".join(map(str, p.shape)) for p in personal}
        return PersonalStore(folder, len(rows.users), layout.personal_size, settings.dtype, columns)

    def round(self, state: Sequence[Tensor], number: int) -> Upload:
        """Train the round's participants and commit their personal parameters.

        Parameters
        ----------
        state : sequence of Tensor
            The server's state; see `fedpa.federation.server.Server`.
        number : int
            The round's number, for the draws.
        """
        everyone = np.flatnonzero(self.rows.train > 0)
        chosen = participants(self.seed, number, self.settings.participation, everyone, self.rows.keys)
        self.store.begin(chosen)
        upload = Upload.empty(self.layout)
        tables = self._tables(state)
        plan = self._training_plan(chosen, everyone)
        for part in self._each(plan, lambda chunk, trainer: self._train(chunk, tables, number, trainer)):
            upload += part
        self.store.commit()
        return upload

    def scores(self, state: Sequence[Tensor]) -> npt.NDArray[np.floating]:
        """Click probabilities of all rows [rows], in the order of `rows`, for a server's state."""
        out = torch.empty(len(self.rows.row), dtype=self.dtype)
        tables = self._tables(state)
        if "score" not in self._plans:
            everyone = np.arange(len(self.rows.users))
            self._plans["score"] = chunks(everyone, self.rows.total, batch_size=None, **self._limits)

        def score(chunk: Chunk, trainer: LocalTrainer) -> None:
            with torch.inference_mode():
                weights = trainer.weights[: len(chunk.users)]
                self._assemble(weights, chunk.users, tables, self.store.read(chunk.users))
                begin, total = self.rows.begin[chunk.users], self.rows.total[chunk.users]
                positions = torch.from_numpy(row_block(chunk, begin, total, 0, None)[0])
                batch = self.rows.batch(chunk.users, positions.to(self.device))
                logits, _ = self.model.forward(self.layout.views(weights), batch)
                out[positions.flatten()] = torch.sigmoid(logits).flatten().cpu()

        for _ in self._each(self._plans["score"], score):
            pass
        return out.numpy()

    def weights_of(self, users: Ints, state: Sequence[Tensor]) -> Tensor:
        """Flat parameters of users, by local number [users, size]."""
        weights = torch.empty(len(users), self.layout.size, dtype=self.dtype, device=self.device)
        values = {key: table[torch.from_numpy(users).to(self.device)] for key, table in self.rows.groups.items()}
        self._fill(weights, self.rows.users[users], values, self._tables(state), self.store.read(users))
        return weights

    def weights_of_newcomer(self, number: int, dataset: Dataset, state: Sequence[Tensor]) -> Tensor:
        """Flat parameters [1, size] of any user of the data set: nothing personal, what the server sends."""
        weights = torch.empty(1, self.layout.size, dtype=self.dtype, device=self.device)
        values = {key: torch.tensor([v], device=self.device) for key, v in self.groups_of(number, dataset).items()}
        self._fill(weights, np.array([number]), values, self._tables(state), None)
        return weights

    def groups_of(self, number: int, dataset: Dataset) -> dict[str, int]:
        """A user's value of every group that the method averages in, -1 where unknown."""
        keys = {str(vector.scope.key) for vector in self.layout.uploaded if vector.scope.kind == "group"}
        return {key: int(codes[number]) for key, codes in group_values(dataset).items() if key in keys}

    def _train(self, chunk: Chunk, tables: list[Tensor], number: int, trainer: LocalTrainer) -> Upload:
        rows, settings = self.rows, self.settings
        users = chunk.users
        stored = self.store.read(users)
        self._assemble(trainer.weights[: len(users)], users, tables, stored)
        trainer.start()
        begin, count = rows.begin[users], rows.train[users]
        plan = list(steps_of(chunk, settings.epochs))
        batch_size = settings.batch_size
        losses: Tensor | None = None
        order: Ints | None = None
        for index, (epoch, step) in enumerate(plan):
            if chunk.steps > 1 and step == 0:
                order = shuffled_rows(self.seed, number, epoch, rows.keys[users], count)
            positions, real = row_block(chunk, begin, count, step, batch_size)
            if order is not None:
                within = np.minimum(positions - begin[:, None], order.shape[1] - 1)
                positions = begin[:, None] + np.take_along_axis(order, within, axis=1)
            where = torch.from_numpy(positions).to(self.device)
            row_weights = torch.from_numpy(
                np.where(np.arange(chunk.width) < real[:, None], 1.0 / np.maximum(real, 1)[:, None], 0.0)
            ).to(self.device, self.dtype)
            before = trainer.step(
                rows.batch(users, where), rows.labels[where], row_weights, last=index == len(plan) - 1
            )
            losses = before if losses is None else losses
        change = trainer.change[: chunk.real]
        self._keep_personal(users[: chunk.real], stored[: chunk.real], change)
        if losses is None:
            raise FedpaError("a chunk without steps was planned")
        return self._sums(users[: chunk.real], change, losses[: chunk.real], trainer.room)

    def _sums(self, users: Ints, change: Tensor, losses: Tensor, room: Tensor) -> Upload:
        """Sum what is uploaded, as integers; nothing else leaves."""
        unit = 2.0 ** FRACTION_BITS[self.dtype]
        count = self.rows.train[users]
        counts = count if self.settings.weighting == "rows" else np.ones_like(count)
        weight = torch.from_numpy(counts).to(self.device)
        low, high = (float(x) * unit for x in change.aminmax())
        upload = Upload.empty(self.layout)
        upload.bound = max(-low, high) * float(counts.sum()) if np.isfinite(low + high) else float("inf")
        upload.check()
        for index, vector in enumerate(self.layout.uploaded):
            if vector.scope.kind == "shared":
                member = weight[None]
            else:
                value = self.rows.groups[str(vector.scope.key)][torch.from_numpy(users).to(self.device)]
                member = (value == torch.arange(vector.values, device=self.device)[:, None]) * weight
            upload.weights[index] = member.sum(1).cpu()
            upload.weights_up += vector.size * int((member > 0).any(0).sum())
            units = room[: len(users) * vector.size].view(len(users), -1)
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
        return LocalTrainer(self.model, self._loss, self.settings, users, self.device)

    def _tables(self, state: Sequence[Tensor]) -> list[Tensor]:
        """The state on the device; group tables end in a row of zeros for users of unknown value."""
        return [
            rows.to(self.device)
            if vector.scope.kind == "shared"
            else torch.cat([rows, rows.new_zeros(1, vector.size)]).to(self.device)
            for vector, rows in zip(self.layout.uploaded, state, strict=True)
        ]

    def _assemble(
        self, weights: Tensor, users: Ints, tables: list[Tensor], personal: npt.NDArray[np.floating] | None
    ) -> None:
        values = {key: table[torch.from_numpy(users).to(self.device)] for key, table in self.rows.groups.items()}
        self._fill(weights, self.rows.users[users], values, tables, personal)

    def _fill(
        self,
        weights: Tensor,
        numbers: Ints,
        values: Mapping[str, Tensor],
        tables: list[Tensor],
        personal: npt.NDArray[np.floating] | None,
    ) -> None:
        """Fill flat parameters: what the server sent beside what each user keeps (None: nothing yet)."""
        for vector, table in zip(self.layout.uploaded, tables, strict=True):
            if vector.scope.kind == "shared":
                vector.put(weights, table)
            else:
                row = values[str(vector.scope.key)] % len(table)  # -1, an unknown value, takes the last row, of zeros
                for into, rows in vector.pairs(weights, table):
                    torch.index_select(rows, 0, row, out=into)
        if self.layout.personal is not None:
            where = torch.from_numpy(numbers).to(self.device)
            vector = self.layout.personal
            vector.put(weights, weights.new_zeros(1, vector.size) if personal is None else torch.from_numpy(personal))
            for span, start in self._starts:
                weights[:, span.begin : span.end] += start(where).flatten(1) if callable(start) else start.flatten()

    def _keep_personal(self, users: Ints, stored: npt.NDArray[np.floating], change: Tensor) -> None:
        """Write what is stored of the users, plus their change; `stored` is overwritten."""
        if self.layout.personal is not None:
            for moved, into in self.layout.personal.pairs(change, torch.from_numpy(stored)):
                into.add_(moved.cpu())
            self.store.write(users, stored)

    def _training_plan(self, chosen: Ints, everyone: Ints) -> list[Chunk]:
        if len(chosen) < len(everyone):
            return self._plan(chosen)
        if "train" not in self._plans:
            self._plans["train"] = self._plan(everyone)
        return self._plans["train"]

    def _plan(self, users: Ints) -> list[Chunk]:
        return chunks(users, self.rows.train[users], batch_size=self.settings.batch_size, **self._limits)
