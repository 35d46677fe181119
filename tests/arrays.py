"""A data set made of arrays and an engine on it, for tests that need no folder."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from fedpa.data.dataset import PRIVATE, CodedFeature, Dataset, Part
from fedpa.federation.rows import Batch, ShardRows
from fedpa.federation.rule import AdaptedModel
from fedpa.federation.server import Server, Upload
from fedpa.federation.shard import Shard
from fedpa.methods.fedpa import FedPA
from fedpa.methods.method import FederatedMethod
from fedpa.models.adapted import AdapterSettings
from fedpa.models.foundation import Foundation
from fedpa.models.mlp import MLP
from fedpa.recommend import catalogue_batch

Array = npt.NDArray[Any]


class ArrayDataset(Dataset):
    """All users private; rows sorted by user, then time."""

    def __init__(
        self,
        *,
        user_ids: Array,
        user_codes: Array,
        item_codes: Array,
        user: Array,
        item: Array,
        label: Array,
        part: Array,
        groups: dict[str, Array],
        sizes: dict[str, dict[str, int]],
        context: Array | None = None,
        features: str = "reference",
    ) -> None:
        self.path = Path("arrays")
        self._ids = pl.Series(user_ids)
        self._item_count = len(item_codes)
        self._sizes = sizes
        self.hash = "arrays"
        self.manifest = {
            "settings": {"features": features},
            "label": "label",
            "labels": ["label", "other"],
            "features": {s: [{"name": n, "size": k} for n, k in sizes.get(s, {}).items()] for s in _SIDES},
            "groups": {},
        }
        self._group_sizes = sizes["groups"]
        self.__dict__.update(
            side=np.full(len(user_ids), PRIVATE, np.uint8),
            user_codes=user_codes.astype(np.int32),
            item_codes=item_codes.astype(np.int32),
            context_codes=np.zeros((len(user), 0), np.int16) if context is None else context.astype(np.int16),
            groups={k: v.astype(np.int32) for k, v in groups.items()},
        )
        self._rows: dict[str, Array] = {
            "user": user.astype(np.uint32),
            "item": item.astype(np.uint32),
            "label": label.astype(np.int8),
            "part": part.astype(np.uint8),
            "time": np.arange(len(user)),
        }

    n_users = property(lambda self: len(self._ids))
    n_items = property(lambda self: self._item_count)
    n_rows = property(lambda self: len(self._rows["user"]))
    user_views = property(lambda self: np.zeros(self.n_rows, np.uint32))
    user_clicks = property(lambda self: np.zeros(self.n_rows, np.uint32))
    item_views = property(lambda self: np.zeros(self.n_rows, np.uint32))
    item_clicks = property(lambda self: np.zeros(self.n_rows, np.uint32))
    open_views = property(lambda self: np.zeros(self.n_rows, np.uint32))
    open_clicks = property(lambda self: np.zeros(self.n_rows, np.uint32))
    user_ids = property(lambda self: self._ids)
    user = property(lambda self: self._rows["user"])
    item = property(lambda self: self._rows["item"])
    label = property(lambda self: self._rows["label"])
    labels = property(lambda self: {"label": self.label, "other": ((self.label + self.item) % 2).astype(np.int8)})
    part = property(lambda self: self._rows["part"])
    time = property(lambda self: self._rows["time"])
    _context = property(lambda self: ())  # none of the context features encodes a count
    group_sizes = property(lambda self: self._group_sizes)
    user_features = property(lambda self: _features(self._sizes, "user"))
    item_features = property(lambda self: _features(self._sizes, "item"))
    context_features = property(lambda self: _features(self._sizes, "context"))


_SIDES = ("user", "item", "context")


def _features(sizes: dict[str, dict[str, int]], side: str) -> tuple[CodedFeature, ...]:
    return tuple(CodedFeature(n, k) for n, k in sizes.get(side, {}).items())


def toy(
    users: int,
    rows_of: Array,
    seed: int = 0,
    *,
    items: int = 20,
    context: bool = False,
    groups: tuple[str, ...] = ("kind", "size"),
    features: str = "reference",
) -> ArrayDataset:
    """Random features; a click depends on the user's and the item's first code, so that there is taste to learn.

    With causal `features` a group's code 0 means that the value is unknown.
    """
    rng = np.random.default_rng(seed)
    user_codes = rng.integers(0, 3, (users, 2))
    item_codes = np.stack([np.arange(items) % 4, rng.integers(0, 3, items)], 1)
    user = np.repeat(np.arange(users), rows_of)
    item = rng.integers(0, items, len(user))
    taste = rng.normal(size=(users, 4)) * 2
    label = rng.random(len(user)) < 1 / (1 + np.exp(-taste[user, item_codes[item, 0]]))
    within = np.arange(len(user)) - np.repeat(np.cumsum(rows_of) - rows_of, rows_of)
    share = within / np.repeat(rows_of, rows_of)
    part = np.where(share < 0.6, Part.TRAIN, np.where(share < 0.8, Part.VAL, Part.TEST))
    coded = {"kind": user_codes[:, 0], "size": rng.integers(0, 2, users), "age": rng.integers(0, 4, users)}
    return ArrayDataset(
        user_ids=np.arange(users) * 7 + 3,
        user_codes=user_codes,
        item_codes=item_codes,
        user=user,
        item=item,
        label=label,
        part=part,
        groups={key: codes for key, codes in coded.items() if key in groups},
        sizes={
            "user": {"kind": 3, "size": 3},
            "item": {"type": 4, "colour": 3},
            "context": {"rate": 5} if context else {},
            "groups": {key: size for key, size in {"kind": 3, "size": 2, "age": 4}.items() if key in groups},
        },
        features=features,
        context=rng.integers(0, 5, (len(user), 1)) if context else None,
    )


CPU = torch.device("cpu")
SET = 999_999
"""Generation of what a test writes into a store by hand, so that no round has its number."""


def toy_foundation(
    data: ArrayDataset,
    *,
    dtype: torch.dtype = torch.float32,
    embedding: int = 3,
    hidden: Sequence[int] = (6, 4),
    seed: int = 0,
) -> Foundation:
    """An untrained foundation for a toy data set."""
    features = {"user": data.user_features, "item": data.item_features, "context": data.context_features}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Foundation.of(MLP(features, embedding, hidden).to(dtype), data.manifest["features"], {})


@dataclass
class ToyEngine:
    """A server and its shards, as `adapt` puts them together."""

    data: ArrayDataset
    foundation: Foundation
    method: FederatedMethod
    model: AdaptedModel
    shards: list[Shard]
    server: Server

    def round(self, number: int) -> Upload:
        """One round of all shards; returns the sum of their uploads."""
        upload = Upload.empty(self.model.layout, self.method.settings)
        for shard in self.shards:
            upload += shard.round(self.server.state, number, self.server.downlink)
        self.server.step(upload)
        return upload

    def personal(self) -> Array:
        """Stored personal parameters of all users of the data set [users, size]."""
        found = np.zeros((self.data.n_users, self.model.layout.personal_size), self.shards[0].settings.dtype)
        for shard in self.shards:
            found[shard.rows.users] = shard.store.read(np.arange(len(shard.rows.users)))
        return found

    def stored(self) -> list[dict[str, Array]]:
        """Everything that the device of each user of the data set keeps, by table; ``""`` is the user's own row."""
        found: list[dict[str, Array]] = [{} for _ in range(self.data.n_users)]
        for shard in self.shards:
            for local, number in enumerate(shard.rows.users):
                one = np.array([local])
                found[number] = {"": shard.store.read(one)[0]}
                for name, store in shard.store.tables.items():
                    found[number][name] = store.read(shard.touched[name].stored(one))
        return found

    def scores(self) -> Array:
        """Scores of all rows of the data set that a shard has, in the data set's order; 0 elsewhere."""
        found = np.zeros(self.data.n_rows, self.shards[0].settings.dtype)
        for shard in self.shards:
            found[shard.rows.row] = shard.scores(self.server.state)
        return found


def toy_engine(
    folder: Path,
    data: ArrayDataset,
    method: FederatedMethod | None = None,
    *,
    divided: Sequence[Array] | None = None,
    seed: int = 0,
    users_per_chunk: int = 128,
    rows_per_chunk: int = 8192,
    foundation: Foundation | None = None,
) -> ToyEngine:
    """An engine for a toy data set; `divided` gives the users of each shard."""
    method = method or FedPA(AdapterSettings(rank=2, gate_hidden=(3, 2)))
    settings = method.settings
    dtype = settings.torch_dtype
    foundation = foundation or toy_foundation(data, dtype=dtype)
    model = method.model(foundation, data, seed, CPU)
    limits = {"users_per_chunk": users_per_chunk, "rows_per_chunk": rows_per_chunk}
    shards = []
    every = [ShardRows.of(data, users, dtype=dtype, device=CPU) for users in ([None] if divided is None else divided)]
    tallies = [found for rows in every if (found := method.tally(data, rows)) is not None]
    tally = functools.reduce(operator.add, tallies) if tallies else None
    for number, plain in enumerate(every):
        rows = method.rows(foundation, data, plain, tally)
        store = Shard.new_store(model, rows, settings, folder / str(number))
        shards.append(Shard(model, rows, settings, store, seed=seed, rule=method, **limits))
    return ToyEngine(data, foundation, method, model, shards, method.server(model.layout))


def catalogue(engine: ToyEngine, context: torch.Tensor) -> tuple[dict[str, torch.Tensor], Batch]:
    """What a forward pass over every item takes for all users of a shard, in `context` [users, items, features]."""
    shard, state = engine.shards[0], engine.server.state
    users, numbers = np.arange(len(shard.rows.users)), shard.rows.users
    blocks, tables = shard.assembly.catalogue(shard.weights_of(users, state), users, numbers, state)
    return blocks, catalogue_batch(tables, numbers, _every_item(engine, len(users)), context)


def newcomer(engine: ToyEngine, number: int, context: torch.Tensor) -> tuple[dict[str, torch.Tensor], Batch]:
    """The same for a user of the data set who is new to the shard, in `context` [1, items, features]."""
    shard, state, numbers = engine.shards[0], engine.server.state, np.array([number])
    flat = shard.weights_of_newcomer(number, engine.data, state)
    blocks, tables = shard.assembly.catalogue(flat, None, numbers, state)
    return blocks, catalogue_batch(tables, numbers, _every_item(engine, 1), context)


def _every_item(engine: ToyEngine, users: int) -> torch.Tensor:
    return torch.arange(engine.data.n_items).expand(users, -1)
