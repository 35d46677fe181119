"""Rounds of one method in the published protocol: draw, train, average, rank the validation items."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedpa.errors import ConfigError, FedpaError
from fedpa.evaluation.leave_one_out import Places
from fedpa.federation.device import DeviceStore
from fedpa.federation.rows import ShardRows
from fedpa.federation.rule import AdaptedModel
from fedpa.federation.server import FRACTION_BITS
from fedpa.federation.shard import Shard
from fedpa.methods.method import FederatedMethod
from fedpa.recommend import catalogue_batch
from fedpa.reproduction.negatives import Pool, Protocol, evaluation_negatives, training_rows
from fedpa.reproduction.ratings import Ratings, TrainingRows

__all__ = ["SAMPLED", "K", "Line", "Outcome", "Task", "drawn_places", "run_rounds", "whole_catalogue"]

SAMPLED = 99
"""Items that a validation or test item is ranked among."""
K = 10
"""Length of the list."""

Ints = NDArray[np.int64]
Floats = NDArray[np.floating]
Score = Callable[[Ints, Ints], Floats]
"""From ascending users [n] and items [n, k] to scores [n, k]."""

_CPU = torch.device("cpu")
_BLOCK_SCORES = 1 << 17


@dataclass(frozen=True)
class Task:
    """What is ranked, drawn once for a seed and a protocol.

    Attributes
    ----------
    ratings : Ratings
    protocol : {"after-split", "published"}
    seed : int
    pool : Pool
        Items that may be a training negative.
    validation_negatives, test_negatives : int64 array [users, sampled]
    """

    ratings: Ratings
    protocol: Protocol
    seed: int
    pool: Pool
    validation_negatives: Ints
    test_negatives: Ints

    @classmethod
    def drawn(cls, ratings: Ratings, protocol: Protocol, seed: int, *, sampled: int = SAMPLED) -> Task:
        """Draw what validation and test items are ranked among."""
        negatives = evaluation_negatives(ratings, protocol, sampled=sampled, seed=seed)
        return cls(ratings, protocol, seed, Pool.of(ratings, protocol), *negatives)


@dataclass(frozen=True)
class Line:
    """A round: HR@10 of both parts among the drawn items, the mean training loss before it, and seconds."""

    round: int
    val_hr: float
    test_hr: float
    train_loss: float
    seconds_draw: float
    seconds_train: float
    seconds_rank: float

    @property
    def seconds(self) -> float:
        """The whole round."""
        return self.seconds_draw + self.seconds_train + self.seconds_rank


@dataclass(frozen=True)
class Outcome:
    """A run at its best round by validation HR@10; of equal ones the last, as published.

    Attributes
    ----------
    sampled, whole : Places
        Of the test items among the drawn ones and in the catalogue without the user's other ratings.
    best_round : int
    lines : list of Line
    stopped : str or None
        Why training ended before its last round.
    """

    sampled: Places
    whole: Places
    best_round: int
    lines: list[Line] = field(default_factory=list)
    stopped: str | None = None


def drawn_places(score: Score, task: Task) -> tuple[Places, Places]:
    """Places of every user's validation item and test item among the items drawn for each."""
    ratings = task.ratings
    parts = (ratings.validation, task.validation_negatives), (ratings.test, task.test_negatives)
    items = np.concatenate([np.concatenate([item[:, None], negatives], axis=1) for item, negatives in parts], axis=1)
    scores = score(np.arange(ratings.n_users), items)
    validation, test = (
        Places(
            (half[:, 1:] > half[:, :1]).sum(1), (half[:, 1:] == half[:, :1]).sum(1), np.full(len(half), half.shape[1])
        )
        for half in np.split(scores, 2, axis=1)
    )
    return validation, test


def whole_catalogue(score: Score, ratings: Ratings) -> Places:
    """Places of every user's test item in the catalogue without the user's other ratings."""
    rated = np.bincount(ratings.user, minlength=ratings.n_users)
    start = np.concatenate([[0], np.cumsum(rated)])
    found = np.empty((3, ratings.n_users), np.int64)
    step = max(1, _BLOCK_SCORES // ratings.n_items)
    for begin in range(0, ratings.n_users, step):
        users = np.arange(begin, min(begin + step, ratings.n_users))
        scores = score(users, np.broadcast_to(np.arange(ratings.n_items), (len(users), ratings.n_items)))
        own = np.take_along_axis(scores, ratings.test[users][:, None], axis=1)
        others = np.ones(scores.shape, np.bool_)
        rows = slice(start[begin], start[users[-1] + 1])
        others[ratings.user[rows] - begin, ratings.item[rows]] = False
        above, tied = (scores > own) & others, (scores == own) & others
        found[:, users] = above.sum(1), tied.sum(1), others.sum(1) + 1
    return Places(*found)


class _Scorer:
    """Logits of users as their devices score after a round, for any items.

    Not their sigmoids, of which many round to 1.
    """

    def __init__(self, model: AdaptedModel, shard: Shard, state: Sequence[Tensor]) -> None:
        self.model, self.shard, self.state = model, shard, list(state)
        self.weights = shard.weights_of(np.arange(len(shard.rows.users)), self.state)

    def __call__(self, users: Ints, items: Ints) -> Floats:
        found = np.empty(items.shape, np.float64)
        # A block holds its users' own copies of whole tables.
        step = max(1, _BLOCK_SCORES // max(items.shape[1], 4096))
        for begin in range(0, len(users), step):
            block = users[begin : begin + step]
            found[begin : begin + step] = self._block(block, items[begin : begin + step])
        if not np.isfinite(found).all():
            raise FedpaError("training diverged: scores are not finite", "lower the learning rate")
        return found

    def _block(self, users: Ints, items: Ints) -> Floats:
        numbers = self.shard.rows.users[users]
        with torch.inference_mode():
            weights = self.weights[torch.from_numpy(users)]
            blocks, tables = self.shard.assembly.catalogue(weights, users, numbers, self.state)
            wanted = torch.from_numpy(np.ascontiguousarray(items))
            context = torch.zeros(*items.shape, 0, dtype=torch.int64)
            logits: Floats = self.model.forward(blocks, catalogue_batch(tables, numbers, wanted, context))[0].numpy()
        return logits


class _Devices:
    """The devices of a run: their rows are drawn anew in every round, their personal parameters stay.

    Everybody takes part in every round, so that all own copies of items are written anew in each: none need be carried
    over to the rows of the next.
    """

    def __init__(self, task: Task, method: FederatedMethod, folder: Path, *, redraw: bool) -> None:
        self.task, self.method, self.folder, self.redraw = task, method, folder, redraw
        data = self._draw(1)
        self.model = method.model(None, data, task.seed, _CPU)
        self._rows = self._of(data)
        self._keeps = bool(DeviceStore.table_columns(self.model.layout, method.settings))
        self._store: DeviceStore | None = None
        self._shard: Shard | None = None

    def of_round(self, number: int) -> Shard:
        """The devices with the rows of a round, from 1 on."""
        if self._shard is not None and not self.redraw and not self._keeps:
            return self._shard
        if self.redraw and number > 1:
            self._rows = self._of(self._draw(number))
        settings = self.method.settings
        if self._store is None or self._keeps:
            touched = Shard.touched_rows(self.model, self._rows) if self._keeps else {}
            made = DeviceStore.create(self._room(number), self.model.layout, touched, len(self._rows.users), settings)
            if self._store is not None:
                made.users = self._store.users
            self._store = made
        self._shard = Shard(self.model, self._rows, settings, self._store, seed=self.task.seed, rule=self.method)
        return self._shard

    def forget_copies(self, number: int) -> None:
        """Delete the own copies of a round; what users keep beside them stays readable while it is open."""
        if self._keeps:
            shutil.rmtree(self._room(number))

    def _room(self, number: int) -> Path:
        return self.folder / f"round-{number}"

    def _draw(self, number: int) -> TrainingRows:
        return training_rows(self.task.ratings, self.task.pool, seed=self.task.seed, round_number=number)

    def _of(self, data: TrainingRows) -> ShardRows:
        return ShardRows.of(data, dtype=self.method.settings.torch_dtype, device=_CPU)


def run_rounds(
    method: FederatedMethod, task: Task, folder: Path, *, redraw: bool = True, advance: Callable[[Line], None]
) -> Outcome:
    """Train all users in every round and keep the best round.

    Parameters
    ----------
    method : FederatedMethod
        Alone, without a foundation; its settings say how many rounds.
    task : Task
    folder : Path
        Empty; for what devices keep.
    redraw : bool
        Draw training negatives anew in every round, as published.
    advance : callable
        Called after every round.

    Raises
    ------
    ConfigError
        If a setting lets users sit out: what they keep could not be carried over to new rows.
    FedpaError
        If the first round diverges already.
    """
    settings = method.settings
    if settings.participation < 1 or settings.keep_optimizer or settings.rounds < 1:
        raise ConfigError(
            f"method {method.name}: found participation={settings.participation}, "
            f"keep_optimizer={settings.keep_optimizer}, rounds={settings.rounds}; expected 1, false and 1 or more",
            "leave these settings out: in the published protocol all users train in every round",
        )
    devices = _Devices(task, method, folder, redraw=redraw)
    server = method.server(devices.model.layout)
    best: tuple[_Scorer, Places, Line] | None = None
    lines: list[Line] = []
    stopped = None
    for number in range(1, settings.rounds + 1):
        try:
            begin = time.perf_counter()
            shard = devices.of_round(number)
            drawn = time.perf_counter()
            upload = shard.round(server.state, number, server.downlink)
            server.step(upload)
            trained = time.perf_counter()
            score = _Scorer(devices.model, shard, server.state)
            validation, test = drawn_places(score, task)
        except FedpaError as error:
            if best is None:
                raise
            stopped = f"round {number}: {error.message}"
            break
        loss = upload.loss * 2.0 ** -FRACTION_BITS[settings.torch_dtype] / upload.participants
        line = Line(
            number,
            val_hr=float(validation.hr(K).mean()),
            test_hr=float(test.hr(K).mean()),
            train_loss=loss,
            seconds_draw=drawn - begin,
            seconds_train=trained - drawn,
            seconds_rank=time.perf_counter() - trained,
        )
        lines.append(line)
        if best is None or line.val_hr >= best[2].val_hr:
            if best is not None:
                devices.forget_copies(best[2].round)
            best = score, test, line
        else:
            devices.forget_copies(number)
        advance(line)
    if best is None:
        raise FedpaError("no round was run")
    return Outcome(best[1], whole_catalogue(best[0], task.ratings), best[2].round, lines, stopped)
