"""PFedRec against a plain loop: turns within a batch, own rows kept to score with."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest

from arrays import ArrayDataset, ToyEngine, toy, toy_engine
from fedpa.data.dataset import Part
from fedpa.errors import FedpaError
from fedpa.federation.schedule import participants, shuffled_rows
from fedpa.methods import FrozenFoundation
from fedpa.methods.pfedrec import PFedRec
from fedpa.models.items import ItemSettings
from fedpa.settings import Settings

ROWS = np.array([3, 5, 9, 4, 30, 6, 12, 5])
LR, ITEM_RATE, EPOCHS = 0.4, 6.0, 2
Array = npt.NDArray[np.float64]


def method(preset: str = "default", **values: Any) -> PFedRec:
    """At full participation of `ROWS`, items move at ``LR * ITEM_RATE``."""
    chosen: dict[str, Any] = {"width": 3, "std": 0.5, "dtype": "float64", "optimizer": "sgd", "lr": LR}
    chosen |= {"epochs": EPOCHS, "item_rate": ITEM_RATE / len(ROWS)}
    return cast(PFedRec, PFedRec.configured(preset, chosen | values))


def starts(engine: ToyEngine) -> tuple[Array, Array, Array]:
    """Weight [width] and bias [1] of the score function, and the items' embeddings [items, width]."""
    weight, bias = engine.model.layout.parameters()
    (table,) = engine.model.layout.tables
    assert not callable(weight.start)
    assert not callable(bias.start)
    return weight.start.numpy()[0].copy(), bias.start.numpy().copy(), table.start.numpy().copy()


def sigmoid(x: Array) -> Array:
    found: Array = 1 / (1 + np.exp(-x))
    return found


class Devices:
    """Every device on its own, without the engine."""

    def __init__(self, engine: ToyEngine, batch_size: int) -> None:
        self.data, self.batch_size = engine.data, batch_size
        self.keys = engine.shards[0].rows.keys
        weight, bias, self.served = starts(engine)
        self.score = [(weight.copy(), bias.copy()) for _ in ROWS]
        self.own: dict[int, Array] = {}

    def train_items(self, user: int) -> npt.NDArray[np.int64]:
        here = (self.data.user == user) & (self.data.part == Part.TRAIN)
        return cast("npt.NDArray[np.int64]", self.data.item[here].astype(np.int64))

    def round(self, number: int, chosen: npt.NDArray[np.int64]) -> None:
        change = np.zeros_like(self.served)
        for user in chosen:
            here = (self.data.user == user) & (self.data.part == Part.TRAIN)
            items, labels = self.train_items(int(user)), self.data.label[here].astype(float)
            (w, b), q = self.score[user], self.served.copy()
            for epoch in range(EPOCHS):
                order = shuffled_rows(0, number, epoch, self.keys[[user]], np.array([len(items)]))[0]
                if len(items) <= self.batch_size:
                    order = np.arange(len(items))
                for begin in range(0, len(items), self.batch_size):
                    rows = order[begin : begin + self.batch_size]
                    error = (labels[rows] - sigmoid(q[items[rows]] @ w + b)) / len(rows)
                    w, b = w + LR * error @ q[items[rows]], b + LR * error.sum()
                    error = (labels[rows] - sigmoid(q[items[rows]] @ w + b)) / len(rows)
                    np.add.at(of_items := np.zeros_like(q), items[rows], error[:, None] * w)
                    q = q + LR * ITEM_RATE * of_items
            self.score[user], self.own[int(user)] = (w, b), q
            change += q - self.served
        self.served = self.served + change / len(chosen)

    def scores(self) -> Array:
        """With a device's own rows where it trained any, the server's newest elsewhere."""
        found = np.zeros(self.data.n_rows)
        for user in range(len(ROWS)):
            q, (w, b) = self.served.copy(), self.score[user]
            if user in self.own:
                trained = self.train_items(user)
                q[trained] = self.own[user][trained]
            here = self.data.user == user
            found[here] = sigmoid(q[self.data.item[here]] @ w + b)
        return found


@pytest.mark.parametrize("batch_size", [4, 1024])
@pytest.mark.parametrize("participation", [1.0, 0.5])
def test_rounds_are_those_of_a_plain_loop(tmp_path: Path, batch_size: int, participation: float) -> None:
    data = toy(len(ROWS), ROWS, items=9)
    engine = toy_engine(
        tmp_path, data, method(batch_size=batch_size, participation=participation, item_rate=0.75 / participation)
    )
    devices = Devices(engine, batch_size)
    everyone = np.arange(len(ROWS))
    for number in (1, 2, 3):
        chosen = participants(0, number, participation, everyone, engine.shards[0].rows.keys)
        assert len(chosen) > 0
        assert (len(chosen) < len(ROWS)) == (participation < 1)
        engine.round(number)
        devices.round(number, chosen)
        np.testing.assert_allclose(engine.server.named()["items"].numpy(), devices.served, rtol=0, atol=1e-10)
        np.testing.assert_allclose(engine.scores(), devices.scores(), rtol=0, atol=1e-10)


def test_turns_within_a_batch_matter(tmp_path: Path) -> None:
    """After one batch of one row: the embedding moves by the score function as it has just become."""
    data = _one_row()
    engine = toy_engine(tmp_path, data, method(epochs=1, item_rate=ITEM_RATE))
    w, b, q = starts(engine)
    engine.round(1)
    error = 1 - sigmoid(q[1] @ w + b)
    w, b = w + LR * error * q[1], b + LR * error
    expected = q[1] + LR * ITEM_RATE * (1 - sigmoid(q[1] @ w + b)) * w
    np.testing.assert_allclose(engine.server.named()["items"][1].numpy(), expected, rtol=0, atol=1e-12)


def _one_row() -> ArrayDataset:
    return ArrayDataset(
        user_ids=np.zeros(1, int),
        user_codes=np.zeros((1, 1)),
        item_codes=np.zeros((3, 1)),
        user=np.zeros(1, int),
        item=np.ones(1, int),
        label=np.ones(1, int),
        part=np.full(1, Part.TRAIN),
        groups={},
        sizes={"user": {"a": 1}, "item": {"b": 1}, "groups": {}},
    )


def test_who_never_took_part_scores_with_the_servers_items(tmp_path: Path) -> None:
    data = toy(len(ROWS), ROWS, items=9)
    engine = toy_engine(tmp_path, data, method(participation=0.5))
    w, b, _ = starts(engine)
    engine.round(1)
    chosen = participants(0, 1, 0.5, np.arange(len(ROWS)), engine.shards[0].rows.keys)
    others = ~np.isin(data.user, chosen)
    served = engine.server.named()["items"].numpy()
    assert others.any()
    np.testing.assert_allclose(engine.scores()[others], sigmoid(served[data.item[others]] @ w + b), rtol=0, atol=1e-12)


def test_above_a_foundation_it_starts_at_the_foundation(tmp_path: Path) -> None:
    data = toy(8, np.full(8, 10))
    engine = toy_engine(tmp_path, data, method("foundation"))
    rows = engine.shards[0].rows
    expected = FrozenFoundation(Settings()).scores(engine.foundation, data, rows)
    np.testing.assert_allclose(engine.shards[0].scores(engine.server.state), expected, rtol=0, atol=1e-6)


def test_the_published_preset_has_the_published_rate(tmp_path: Path) -> None:
    found = PFedRec.configured("published", {"dtype": "float64"})
    settings = cast(ItemSettings, found.settings)
    chosen = (settings.optimizer, settings.lr, settings.batch_size, settings.width, settings.epochs, settings.rounds)
    assert chosen == ("sgd", 0.1, 256, 32, 1, 100)
    engine = toy_engine(tmp_path, toy(8, np.full(8, 10), items=9), cast(PFedRec, found))
    assert engine.method.lr_scale("items") == 80 * 9
    assert engine.method.lr_scale("score.weight") == 1
    assert "published" not in PFedRec.compared


@pytest.mark.parametrize("lr", [1e20, 1e38])
def test_too_large_a_rate_says_so(tmp_path: Path, lr: float) -> None:
    engine = toy_engine(tmp_path, toy(8, np.full(8, 10)), method(lr=lr, dtype="float32"))
    with pytest.raises(FedpaError, match="training diverged"):
        engine.round(1)
