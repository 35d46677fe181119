"""FedMF by hand: gradients of the logistic loss, a step of each device, and their mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
import torch

from arrays import CPU, ArrayDataset, ToyEngine, toy, toy_engine, toy_foundation
from fedpa.data.dataset import Part
from fedpa.errors import FedpaError
from fedpa.methods import FrozenFoundation
from fedpa.methods.fedmf import FedMF
from fedpa.models.items import ItemSettings
from fedpa.settings import Settings

Array = npt.NDArray[np.float64]


def method(preset: str = "default", **values: Any) -> FedMF:
    chosen = {"width": 3, "std": 0.5, "dtype": "float64", "optimizer": "sgd", "lr": 0.4} | values
    return cast(FedMF, FedMF.configured(preset, chosen))


def clicks(rows: list[tuple[int, int, int, Part]], items: int) -> ArrayDataset:
    """A data set of (user, item, click, part)."""
    user, item, label, part = (np.array(column) for column in zip(*rows, strict=True))
    users = int(user.max()) + 1
    return ArrayDataset(
        user_ids=np.arange(users),
        user_codes=np.zeros((users, 1)),
        item_codes=np.zeros((items, 1)),
        user=user,
        item=item,
        label=label,
        part=part,
        groups={},
        sizes={"user": {"a": 1}, "item": {"b": 1}, "groups": {}},
    )


def starts(engine: ToyEngine) -> tuple[Array, Array]:
    """The users' vectors [users, width] and the items' [items, width] before any training."""
    (user,) = engine.model.layout.parameters()
    (table,) = engine.model.layout.tables
    assert not callable(user.start)
    return np.repeat(user.start.numpy(), engine.data.n_users, 0), table.start.numpy().copy()


def sigmoid(x: Array) -> Array:
    found: Array = 1 / (1 + np.exp(-x))
    return found


def served(engine: ToyEngine) -> Array:
    """The server's item vectors [items, width]."""
    return cast(Array, engine.server.named()["items"].numpy())


def test_one_user_one_item(tmp_path: Path) -> None:
    """dp = lr (y - s) q and dq = lr (y - s) p, with both gradients taken before either moves."""
    data = clicks([(0, 1, 1, Part.TRAIN), (0, 1, 0, Part.TEST), (0, 0, 1, Part.TEST)], items=3)
    engine = toy_engine(tmp_path, data, method(item_rate=2.5))
    (p,), q = starts(engine)
    engine.round(1)
    error = 1 - sigmoid(p @ q[1])
    p_after, q_after = p + 0.4 * error * q[1], q.copy()
    q_after[1] += 2.5 * 0.4 * error * p
    np.testing.assert_allclose(engine.personal()[0], p_after - p, rtol=0, atol=1e-12)
    np.testing.assert_allclose(served(engine), q_after, rtol=0, atol=1e-12)
    np.testing.assert_allclose(engine.scores()[1:], sigmoid(q_after[[1, 0]] @ p_after), rtol=0, atol=1e-12)


def test_the_mean_is_over_participants_and_not_over_those_who_have_the_item(tmp_path: Path) -> None:
    """Item 0 is common, 1 and 2 belong to one user each, 3 to nobody."""
    rows = [(0, 0, 1), (0, 1, 0), (1, 0, 0), (1, 2, 1), (1, 2, 1)]
    engine = toy_engine(tmp_path, clicks([(*row, Part.TRAIN) for row in rows], items=4), method(item_rate=0.5))
    p, q = starts(engine)
    upload = engine.round(1)
    assert upload.weights_up == 2 * 4 * 3  # whole tables, so that nobody learns which rows a user touched

    def pull(user: int, item: int, click: int) -> float:
        return float(click - sigmoid(p[user] @ q[item]))

    after = q.copy()
    after[0] += 0.4 * (pull(0, 0, 1) / 2 * p[0] + pull(1, 0, 0) / 3 * p[1]) / 2
    after[1] += 0.4 * pull(0, 1, 0) / 2 * p[0] / 2
    after[2] += 0.4 * pull(1, 2, 1) * 2 / 3 * p[1] / 2
    np.testing.assert_allclose(served(engine), after, rtol=0, atol=1e-12)
    assert (served(engine)[3] == q[3]).all()


@pytest.mark.parametrize("weighting", ["users", "rows"])
def test_rounds_of_many_users(tmp_path: Path, weighting: str) -> None:
    data = toy(11, np.array([3, 5, 9, 4, 30, 6, 12, 5, 3, 8, 17]), items=9)
    engine = toy_engine(tmp_path, data, method(item_rate=4.0 / 11, epochs=3, weighting=weighting))
    p, q = starts(engine)
    train = data.part == Part.TRAIN
    for number in (1, 2):
        engine.round(number)
        change, weights = np.zeros_like(q), np.zeros(data.n_users)
        for user in range(data.n_users):
            here = train & (data.user == user)
            items, labels = data.item[here].astype(int), data.label[here]
            weights[user] = here.sum() if weighting == "rows" else 1.0
            own = q.copy()
            for _ in range(3):
                error = (labels - sigmoid(own[items] @ p[user])) / len(items)
                of_items = np.zeros_like(own)
                np.add.at(of_items, items, error[:, None] * p[user])
                p[user] += 0.4 * error @ own[items]
                own += 4.0 * 0.4 * of_items
            change += weights[user] * (own - q)
        q += change / weights.sum()
        np.testing.assert_allclose(served(engine), q, rtol=0, atol=1e-10)
        expected = sigmoid((p[data.user] * q[data.item]).sum(1))
        np.testing.assert_allclose(engine.scores(), expected, rtol=0, atol=1e-10)


def test_the_published_rate_of_items_is_eighty_times_their_number(tmp_path: Path) -> None:
    data = clicks([(0, 1, 1, Part.TRAIN)], items=3)
    engine = toy_engine(tmp_path, data, method(item_rate=None))
    (p,), q = starts(engine)
    engine.round(1)
    expected = q[1] + 80 * 3 * 0.4 * (1 - sigmoid(p @ q[1])) * p
    np.testing.assert_allclose(served(engine)[1], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("values", "factor"),
    [({}, 11 * 0.5), ({"participation": 0.25}, 11 * 0.5 * 0.25), ({"table_mean": "touched"}, 0.5)],
)
def test_the_rate_of_items_makes_up_for_what_the_server_divides_by(
    tmp_path: Path, values: dict[str, Any], factor: float
) -> None:
    engine = toy_engine(tmp_path, toy(11, np.full(11, 5)), method(item_rate=0.5, **values))
    assert engine.method.lr_scale("items") == factor
    assert engine.method.lr_scale("user") == 1


def test_the_published_preset_is_not_compared() -> None:
    found = cast(ItemSettings, FedMF.configured("published", {}).settings)
    chosen = (found.optimizer, found.lr, found.item_rate, found.batch_size, found.width, found.epochs, found.rounds)
    assert chosen == ("sgd", 0.1, None, 256, 32, 1, 100)
    assert "published" not in FedMF.compared


def test_above_a_foundation_it_starts_at_the_foundation(tmp_path: Path) -> None:
    data = toy(8, np.full(8, 10))
    engine = toy_engine(tmp_path, data, method("foundation"))
    rows = engine.shards[0].rows
    expected = FrozenFoundation(Settings()).scores(engine.foundation, data, rows)
    np.testing.assert_allclose(engine.shards[0].scores(engine.server.state), expected, rtol=0, atol=1e-6)
    assert engine.method.inputs == "item ids, features, counters"
    before = engine.scores()
    engine.round(1)
    assert (np.abs(engine.scores() - before) > 1e-3).any()


def test_the_callers_foundation_keeps_its_type() -> None:
    data = toy(8, np.full(8, 10))
    foundation = toy_foundation(data)
    before = {name: value.clone() for name, value in foundation.model.state_dict().items()}
    method("foundation", dtype="float64").build(foundation, data, 0, CPU)
    after = foundation.model.state_dict()
    assert {name: value.dtype for name, value in after.items()} == {n: value.dtype for n, value in before.items()}
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_only_a_foundation_below_is_read() -> None:
    assert not method().reads_foundation
    assert method().inputs == "item ids"
    assert method("foundation").reads_foundation


@pytest.mark.parametrize("lr", [1e20, 1e38])
def test_too_large_a_rate_says_so(tmp_path: Path, lr: float) -> None:
    engine = toy_engine(tmp_path, toy(8, np.full(8, 10)), method(lr=lr, dtype="float32", epochs=3))
    with pytest.raises(FedpaError, match="training diverged"):
        engine.round(1)
