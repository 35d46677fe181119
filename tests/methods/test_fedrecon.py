"""FedRecon against a plain loop: halves, a vector rebuilt from its start, nothing kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest

from arrays import ArrayDataset, ToyEngine, toy, toy_engine
from fedpa.data.dataset import Part
from fedpa.errors import FedpaError
from fedpa.federation.schedule import halves
from fedpa.methods.fedrecon import FedRecon, FedReconSettings

ROWS = np.array([3, 5, 9, 1, 30, 6, 12, 2])
LR, RECONSTRUCTION, ITEM_RATE = 0.4, 2.0, 6.0
Array = npt.NDArray[np.float64]


def method(preset: str = "default", **values: Any) -> FedRecon:
    chosen: dict[str, Any] = {"width": 3, "std": 0.5, "dtype": "float64", "optimizer": "sgd", "lr": LR, "epochs": 2}
    chosen |= {"reconstruction_epochs": 3, "reconstruction_rate": RECONSTRUCTION, "item_rate": ITEM_RATE / len(ROWS)}
    return cast(FedRecon, FedRecon.configured(preset, chosen | values))


def starts(engine: ToyEngine) -> tuple[Array, Array]:
    """The vector that all users start from [width] and the items' [items, width]."""
    (user,) = engine.model.layout.parameters()
    (table,) = engine.model.layout.tables
    assert not callable(user.start)
    return user.start.numpy()[0].copy(), table.start.numpy().copy()


def sigmoid(x: Array) -> Array:
    found: Array = 1 / (1 + np.exp(-x))
    return found


def rebuilt(start: Array, q: Array, items: npt.NDArray[np.int64], labels: Array) -> Array:
    """A user's vector after three steps on these rows, the items fixed."""
    p = start.copy()
    for _ in range(3):
        p += LR * RECONSTRUCTION * (labels - sigmoid(q[items] @ p)) @ q[items] / len(items)
    return p


def train_rows(data: ArrayDataset, user: int) -> tuple[npt.NDArray[np.int64], Array]:
    here = (data.user == user) & (data.part == Part.TRAIN)
    return data.item[here].astype(np.int64), data.label[here].astype(float)


@pytest.mark.parametrize("weighting", ["rows", "users"])
def test_rounds_are_those_of_a_plain_loop(tmp_path: Path, weighting: str) -> None:
    data = toy(len(ROWS), ROWS, items=9)
    engine = toy_engine(tmp_path, data, method(weighting=weighting))
    start, q = starts(engine)
    keys = engine.shards[0].rows.keys
    served = q
    for number in (1, 2, 3):
        engine.round(number)
        change, weights = np.zeros_like(q), np.zeros(len(ROWS))
        for user in range(len(ROWS)):
            items, labels = train_rows(data, user)
            weights[user] = len(items) if weighting == "rows" else 1
            half = halves(0, number, keys[[user]], np.array([len(items)]))[0]
            support, query = (half & 1) > 0, (half & 2) > 0
            assert support.sum() == (len(items) + 1) // 2
            p, own = rebuilt(start, q, items[support], labels[support]), q.copy()
            for _ in range(2):
                error = (labels[query] - sigmoid(own[items[query]] @ p)) / query.sum()
                np.add.at(of_items := np.zeros_like(q), items[query], error[:, None] * p)
                own += LR * ITEM_RATE * of_items
            change += weights[user] * (own - q)
        q = q + change / weights.sum()
        served = engine.server.named()["items"].numpy()
        np.testing.assert_allclose(served, q, rtol=0, atol=1e-10)
    for user in range(len(ROWS)):
        p = rebuilt(start, q, *train_rows(data, user))
        here = data.user == user
        np.testing.assert_allclose(engine.scores()[here], sigmoid(q[data.item[here]] @ p), rtol=0, atol=1e-10)
        found = engine.shards[0].weights_of(np.array([user]), engine.server.state)[0].numpy()
        np.testing.assert_allclose(found, p, rtol=0, atol=1e-10)


def test_halves_of_a_round_are_disjoint_and_drawn_anew() -> None:
    count = np.array([1, 2, 7, 8])
    first, second = (halves(0, number, np.arange(4, dtype=np.uint64), count) for number in (1, 2))
    for half, rows in zip(first, count, strict=True):
        if rows > 1:
            assert set(half[:rows]) == {1, 2}
            assert (half[:rows] == 1).sum() == (rows + 1) // 2
    assert first[0, 0] == 3  # a single row is both
    assert (first != second).any()


def test_nothing_personal_is_stored(tmp_path: Path) -> None:
    engine = toy_engine(tmp_path, toy(len(ROWS), ROWS, items=9), method())
    engine.round(1)
    assert not engine.shards[0].store.read(np.arange(len(ROWS))).any()
    assert not engine.shards[0].store.tables


def test_scores_do_not_depend_on_who_took_part(tmp_path: Path) -> None:
    """With the same items every device rebuilds the same vector, whatever it did before."""
    data = toy(len(ROWS), ROWS, items=9)
    some, all_of_them = (toy_engine(tmp_path / str(share), data, method(participation=share)) for share in (0.4, 1.0))
    some.round(1)
    all_of_them.round(1)
    some.server.state = all_of_them.server.state
    np.testing.assert_array_equal(some.scores(), all_of_them.scores())


def test_the_published_preset_is_not_compared() -> None:
    found = cast(FedReconSettings, FedRecon.configured("published", {}).settings)
    chosen = (found.optimizer, found.lr, found.batch_size, found.width, found.epochs, found.rounds)
    assert chosen == ("sgd", 0.1, 256, 32, 1, 100)
    assert (found.reconstruction_rate, found.reconstruction_epochs, found.item_rate) == (1.0, 5, None)
    assert "published" not in FedRecon.compared


@pytest.mark.parametrize("lr", [1e20, 1e38])
def test_too_large_a_rate_says_so(tmp_path: Path, lr: float) -> None:
    engine = toy_engine(tmp_path, toy(8, np.full(8, 10)), method(lr=lr, dtype="float32"))
    with pytest.raises(FedpaError, match="training diverged"):
        engine.round(1)
