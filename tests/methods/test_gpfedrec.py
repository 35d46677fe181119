"""GPFedRec against a dense computation: whole tables, all pairs of users, a loop over devices."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from arrays import ToyEngine, toy, toy_engine
from fedpa.data.dataset import Part
from fedpa.errors import ConfigError, FedpaError
from fedpa.methods import FrozenFoundation, gpfedrec
from fedpa.methods.gpfedrec import GPFedRec, nearest
from fedpa.settings import Settings

ROWS = np.array([3, 5, 9, 4, 30, 6, 12, 5, 7, 10])
USERS, ITEMS, WIDTH, HIDDEN, NEAR = len(ROWS), 9, 3, (5, 4), 3
LR, ITEM_RATE, CLOSENESS, EPOCHS = 0.3, 6.0, 0.8, 3
Array = npt.NDArray[np.float64]


def method(preset: str = "default", **values: Any) -> GPFedRec:
    chosen: dict[str, Any] = {"width": WIDTH, "hidden": HIDDEN, "std": 0.5, "dtype": "float64", "optimizer": "sgd"}
    chosen |= {"lr": LR, "epochs": EPOCHS, "item_rate": ITEM_RATE / USERS, "closeness": CLOSENESS, "neighbours": NEAR}
    chosen |= {"server_optimizer": "mean", "server_lr": 1.0}
    return cast(GPFedRec, GPFedRec.configured(preset, chosen | values))


def starts(engine: ToyEngine) -> tuple[dict[str, Tensor], Tensor]:
    """What a device keeps, by name, and the item table."""
    own = {p.name: cast(Tensor, p.start).clone() for p in engine.model.layout.parameters()}
    (table,) = engine.model.layout.tables
    return own, table.start.clone()


def logits(own: dict[str, Tensor], q: Tensor, items: Tensor) -> Tensor:
    x = torch.cat([own["user"].expand(len(items), -1), q[items]], 1)
    for layer in ("layers.0", "layers.1"):
        x = torch.relu(x @ own[f"{layer}.weight"].T + own[f"{layer}.bias"])
    return (x @ own["head.weight"].T + own["head.bias"]).squeeze(1)


def trained(
    own: dict[str, Tensor], q: Tensor, received: Tensor, items: Tensor, labels: Tensor
) -> tuple[dict[str, Tensor], Tensor]:
    """A device after its round: log-loss plus the mean squared distance of the rows' embeddings to what it received."""
    own, start = dict(own), q
    for _ in range(EPOCHS):
        values = [value.clone().requires_grad_() for value in (q, *own.values())]
        mine = dict(zip(own, values[1:], strict=True))
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits(mine, values[0], items), labels)
        loss = loss + CLOSENESS * ((values[0][items] - received[items]) ** 2).mean()
        slopes = torch.autograd.grad(loss, values)
        q = q - LR * ITEM_RATE * slopes[0]
        own = {name: own[name] - LR * slope for name, slope in zip(own, slopes[1:], strict=True)}
    assert not torch.equal(q, start)
    return own, q


def graph(tables: Array, near: int) -> npt.NDArray[np.int64]:
    """Every user's most similar users by the cosine of whole tables [users, near], itself first."""
    flat = tables.reshape(len(tables), -1)
    flat = flat / np.linalg.norm(flat, axis=1, keepdims=True)
    found: npt.NDArray[np.int64] = np.argsort(-(flat @ flat.T), axis=1, kind="stable")[:, :near]
    return found


@pytest.mark.parametrize("near", [1, 3, 12])
def test_nearest_is_the_cosine_of_whole_tables(near: int) -> None:
    rng = np.random.default_rng(3)
    users, rows = 12, 20
    table = rng.normal(size=(rows, WIDTH))
    touched = [np.sort(rng.choice(rows, rng.integers(1, 9), replace=False)) for _ in range(users)]
    owner = np.repeat(np.arange(users), [len(ids) for ids in touched])
    ids = np.concatenate(touched)
    change = rng.normal(size=(len(ids), WIDTH))
    tables = np.repeat(table[None], users, 0)
    tables[owner, ids] += change
    found = nearest(table, owner, ids, change, users, near)
    np.testing.assert_array_equal(found, graph(tables, near))
    assert (found[:, 0] == np.arange(users)).all()


def test_nearest_tells_small_changes_of_a_large_table_apart() -> None:
    """Two pairs of users who changed one row alike, by a ten-thousandth of its length."""
    table = np.random.default_rng(0).normal(size=(2_000, 8))
    change = np.zeros((4, 8))
    change[[0, 2], 0] = change[[1, 3], 1] = 1e-4
    found = nearest(table, np.arange(4), np.zeros(4, int), change, 4, 2)
    assert [set(pair) for pair in found] == [{0, 2}, {1, 3}, {0, 2}, {1, 3}]


@pytest.mark.parametrize("server", [{}, {"server_lr": 0.5}])
def test_rounds_are_those_of_a_dense_loop(tmp_path: Path, server: dict[str, Any]) -> None:
    """The first round is held to the start, later ones to the mean of the nearest users' tables."""
    data = toy(USERS, ROWS, items=ITEMS)
    engine = toy_engine(tmp_path, data, method(**server))
    own, q = starts(engine)
    devices, received = [own] * USERS, q.expand(USERS, -1, -1)
    train = data.part == Part.TRAIN
    tables = received
    for number in (1, 2, 3):
        engine.round(number)
        after = []
        for user in range(USERS):
            here = train & (data.user == user)
            items, labels = torch.from_numpy(data.item[here].astype(int)), torch.from_numpy(data.label[here]).double()
            devices[user], mine = trained(devices[user], q, received[user], items, labels)
            after.append(mine)
        tables = torch.stack(after)
        received = tables[torch.from_numpy(graph(tables.numpy(), NEAR))].mean(1)
        q = q + server.get("server_lr", 1.0) * (received.mean(0) - q)
        torch.testing.assert_close(engine.server.named()["items"], q, rtol=0, atol=1e-10)
        (sent,) = engine.server.downlink
        rows, who = torch.from_numpy(sent.ids), torch.from_numpy(sent.users)
        torch.testing.assert_close(sent.values, received[who, rows] - q[rows], rtol=0, atol=1e-10)
    assert not torch.allclose(received[0], received[4])
    for user in range(USERS):
        here = data.user == user
        known = np.unique(data.item[train & here].astype(int))
        mixed = q.clone()
        mixed[known] = tables[user, known]
        expected = torch.sigmoid(logits(devices[user], mixed, torch.from_numpy(data.item[here].astype(int))))
        np.testing.assert_allclose(engine.scores()[here], expected.numpy(), rtol=0, atol=1e-10)


def test_the_server_sees_rows_and_only_of_items() -> None:
    found = method()
    assert found.scope("items").sees == "rows"
    assert [found.scope(name).kind for name in ("user", "layers.0.weight", "head.bias")] == ["personal"] * 3


def test_a_round_of_nobody_changes_nothing(tmp_path: Path) -> None:
    engine = toy_engine(tmp_path, toy(USERS, ROWS, items=ITEMS), method(participation=1e-9))
    before = engine.server.named()["items"]
    assert engine.round(1).participants == 0
    assert torch.equal(engine.server.named()["items"], before)


def test_too_many_users_for_a_graph_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpfedrec, "_MOST", 5)
    engine = toy_engine(tmp_path, toy(USERS, ROWS, items=ITEMS), method())
    with pytest.raises(ConfigError, match=r"gpfedrec: 10 users took part.*5 at most[\s\S]*participation"):
        engine.round(1)


def test_above_a_foundation_it_starts_at_the_foundation(tmp_path: Path) -> None:
    data = toy(8, np.full(8, 10))
    engine = toy_engine(tmp_path, data, method("foundation"))
    rows = engine.shards[0].rows
    expected = FrozenFoundation(Settings()).scores(engine.foundation, data, rows)
    np.testing.assert_allclose(engine.shards[0].scores(engine.server.state), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("lr", [1e20, 1e38])
def test_too_large_a_rate_says_so(tmp_path: Path, lr: float) -> None:
    engine = toy_engine(tmp_path, toy(8, np.full(8, 10)), method(lr=lr, dtype="float32"))
    with pytest.raises(FedpaError, match="training diverged"):
        engine.round(1)
