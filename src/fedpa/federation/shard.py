"""A shard does the whole of a round for its users and returns sums."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedpa.data.dataset import Dataset
from fedpa.errors import FedpaError
from fedpa.federation.local import AdaptedModel, LocalTrainer, Loss, click_loss
from fedpa.federation.parameters import Span
from fedpa.federation.rows import ShardRows, group_values
from fedpa.federation.schedule import Chunk, chunks, participants, row_block, shuffled_rows, steps_of
from fedpa.federation.server import FRACTION_BITS, Upload
from fedpa.federation.store import PersonalStore
from fedpa.methods.settings import Settings

__all__ = ["Shard"]

Ints = npt.NDArray[np.int64]
_USERS_PER_CHUNK = 128
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
        self._trainer = LocalTrainer(model, loss, settings, max(2, users_per_chunk), self.device)
        self.store = store
        self._plans: dict[str, list[Chunk]] = {}

    @staticmethod
    def new_store(model: AdaptedModel, rows: ShardRows, settings: Settings, folder: Path) -> PersonalStore:
        """A store of zeros for a shard's users; its header names the columns."""
        layout = model.layout
        columns = {p.name: "x".join(map(str, p.shape)) for span in layout.personal for p in span.parameters}
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
        for chunk in self._training_plan(chosen, everyone):
            upload += self._train(chunk, tables, number)
        self.store.commit()
        return upload

    def scores(self, state: Sequence[Tensor], store_rows: bool = True) -> npt.NDArray[np.floating]:
        """Click probabilities of all rows [rows], in the order of `rows`.

        Parameters
        ----------
        state : sequence of Tensor
            The server's state.
        store_rows : bool
            Use the personal parameters of the current generation; otherwise every user's start.
        """
        out = torch.empty(len(self.rows.row), dtype=self.dtype)
        tables = self._tables(state)
        if "score" not in self._plans:
            everyone = np.arange(len(self.rows.users))
            self._plans["score"] = chunks(everyone, self.rows.total, batch_size=None, **self._limits)
        with torch.inference_mode():
            for chunk in self._plans["score"]:
                personal = self.store.read(chunk.users) if store_rows else None
                weights = self._trainer.weights[: len(chunk.users)]
                self._assemble(weights, chunk.users, tables, personal)
                positions, _ = row_block(chunk, self.rows.begin[chunk.users], self.rows.total[chunk.users], 0, None)
                index = torch.from_numpy(positions).to(self.device)
                logits, _ = self.model.forward(self.layout.views(weights), self.rows.batch(chunk.users, index))
                out[index.cpu().flatten()] = torch.sigmoid(logits).flatten().cpu()
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
        keys = {str(span.scope.key) for span in self.layout.uploaded if span.scope.kind == "group"}
        return {key: int(codes[number]) for key, codes in group_values(dataset).items() if key in keys}

    def _train(self, chunk: Chunk, tables: list[Tensor], number: int) -> Upload:
        rows, settings, trainer = self.rows, self.settings, self._trainer
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
        return self._sums(users[: chunk.real], change, losses[: chunk.real])

    def _sums(self, users: Ints, change: Tensor, losses: Tensor) -> Upload:
        """Sum what is uploaded, as integers; nothing else leaves."""
        count = self.rows.train[users]
        weight = torch.from_numpy(count if self.settings.weighting == "rows" else np.ones_like(count)).to(self.device)
        upload = Upload.empty(self.layout)
        unit = 2.0 ** FRACTION_BITS[self.dtype]
        largest = 0.0
        for index, span in enumerate(self.layout.uploaded):
            piece = change[:, span.begin : span.end]
            scaled = (piece * unit).round_()
            largest = max(largest, float(scaled.abs().max()) if scaled.numel() else 0.0)
            units = scaled.to(torch.int64)
            if self.settings.weighting == "rows":
                units *= weight[:, None]
            if span.scope.kind == "shared":
                upload.sums[index] = units.sum(0, keepdim=True).cpu()
                upload.weights[index] = weight.sum()[None].cpu()
                upload.weights_up += span.size * len(users)
            else:
                value = self.rows.groups[str(span.scope.key)][torch.from_numpy(users).to(self.device)]
                known = value >= 0
                rows = upload.sums[index].shape[0]
                total = torch.zeros(rows, span.size, dtype=torch.int64, device=self.device)
                upload.sums[index] = total.index_add_(0, value[known], units[known]).cpu()
                weights = torch.zeros(rows, dtype=torch.int64, device=self.device)
                upload.weights[index] = weights.index_add_(0, value[known], weight[known]).cpu()
                upload.weights_up += span.size * int(known.sum())
        upload.participants = len(users)
        upload.rows = int(count.sum())
        upload.loss = int((losses.double() * unit).round().to(torch.int64).sum())
        upload.bound = largest * float(weight.sum()) if np.isfinite(largest) else float("inf")
        upload.check()
        return upload

    def _tables(self, state: Sequence[Tensor]) -> list[Tensor]:
        """The state on the device; group tables end in a row of zeros for users of unknown value."""
        return [
            rows.to(self.device)
            if span.scope.kind == "shared"
            else torch.cat([rows, rows.new_zeros(1, span.size)]).to(self.device)
            for span, rows in zip(self.layout.uploaded, state, strict=True)
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
        for span, table in zip(self.layout.uploaded, tables, strict=True):
            part = weights[:, span.begin : span.end]
            if span.scope.kind == "shared":
                part.copy_(table.expand(len(numbers), -1))
            else:
                part.copy_(table[values[str(span.scope.key)]])
        where = torch.from_numpy(numbers).to(self.device)
        stored = None if personal is None else torch.from_numpy(personal).to(self.device)
        position = 0
        for span in self.layout.personal:
            part = weights[:, span.begin : span.end]
            self._start(span, where, part)
            if stored is not None:
                part += stored[:, position : position + span.size]
            position += span.size

    def _start(self, span: Span, numbers: Tensor, out: Tensor) -> None:
        position = 0
        for parameter in span.parameters:
            start = parameter.start(numbers) if callable(parameter.start) else parameter.start[None]
            out[:, position : position + parameter.size] = start.reshape(len(start), -1)
            position += parameter.size

    def _keep_personal(self, users: Ints, stored: npt.NDArray[np.floating], change: Tensor) -> None:
        if self.layout.personal:
            moved = torch.cat([change[:, span.begin : span.end] for span in self.layout.personal], 1)
            self.store.write(users, stored + moved.cpu().numpy())

    def _training_plan(self, chosen: Ints, everyone: Ints) -> list[Chunk]:
        if len(chosen) < len(everyone):
            return self._plan(chosen)
        if "train" not in self._plans:
            self._plans["train"] = self._plan(everyone)
        return self._plans["train"]

    def _plan(self, users: Ints) -> list[Chunk]:
        return chunks(users, self.rows.train[users], batch_size=self.settings.batch_size, **self._limits)
