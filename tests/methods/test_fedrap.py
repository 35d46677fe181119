"""FedRAP's loss, schedule and scopes against a plain loop of PyTorch."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from arrays import ToyEngine, toy, toy_engine
from fedpa.data.dataset import Part
from fedpa.errors import FedpaError
from fedpa.methods import FrozenFoundation
from fedpa.methods.fedrap import FedRAP
from fedpa.settings import Settings

ROWS = np.array([3, 5, 9, 4, 30, 6, 12, 5])
LR, ITEM_RATE, OWN_RATE, APART, SPARSE, EPOCHS = 0.3, 6.0, 2.0, 0.7, 0.4, 2


def method(preset: str = "default", **values: Any) -> FedRAP:
    chosen: dict[str, Any] = {"width": 3, "std": 0.6, "dtype": "float64", "optimizer": "sgd", "lr": LR}
    chosen |= {
        "epochs": EPOCHS,
        "item_rate": ITEM_RATE / len(ROWS),
        "own_rate": OWN_RATE,
        "apart": APART,
        "sparse": SPARSE,
    }
    return cast(FedRAP, FedRAP.configured(preset, chosen | values))


def starts(engine: ToyEngine) -> dict[str, Tensor]:
    layout = engine.model.layout
    found = {p.name: p.start for p in layout.parameters()} | {t.name: t.start for t in layout.tables}
    return {name: cast(Tensor, value).clone() for name, value in found.items()}


def loss(own: list[Tensor], items: Tensor, labels: Tensor, grown: float) -> tuple[Tensor, int]:
    """The objective on a batch, row by row, and how many differences were cut at one."""
    c, d, w, b = own
    total, cut = torch.zeros((), dtype=torch.float64), 0
    for item, label in zip(items, labels, strict=True):
        p = torch.sigmoid(w @ (c[item] + d[item]) + b).squeeze()
        total = total - (label * p.log() + (1 - label) * (1 - p).log())
        difference = ((d[item] - c[item]) ** 2).mean()
        cut += int(difference > 1)
        total = total - grown * APART * (difference if difference < 1 else torch.ones(()))
        total = total + grown * SPARSE * c[item].abs().mean()
    return total / len(items), cut


def test_rounds_are_those_of_a_plain_loop(tmp_path: Path) -> None:
    """The shared table is the mean of theirs, the personal one never leaves; the terms grow from round to round."""
    data = toy(len(ROWS), ROWS, items=9)
    engine = toy_engine(tmp_path, data, method())
    start, train = starts(engine), data.part == Part.TRAIN
    c = start.pop("items")
    own = [{name: value.clone() for name, value in start.items()} for _ in ROWS]
    cut = 0
    for number, grown in ((1, 0.0), (2, math.tanh(0.1)), (3, math.tanh(0.2))):
        engine.round(number)
        change = torch.zeros_like(c)
        for user in range(len(ROWS)):
            here = train & (data.user == user)
            items, labels = torch.from_numpy(data.item[here].astype(int)), torch.from_numpy(data.label[here]).double()
            mine = [c, own[user]["own_items"], own[user]["score.weight"][0], own[user]["score.bias"]]
            for _ in range(EPOCHS):
                mine = [value.clone().requires_grad_() for value in mine]
                value, many = loss(mine, items, labels, grown)
                cut += many
                slopes = torch.autograd.grad(value, mine)
                rates = (LR * ITEM_RATE, LR * OWN_RATE, LR, LR)
                mine = [v.detach() - rate * g for v, rate, g in zip(mine, rates, slopes, strict=True)]
            change += mine[0] - c
            own[user] = {"own_items": mine[1], "score.weight": mine[2][None], "score.bias": mine[3]}
        c = c + change / len(ROWS)
        assert set(engine.server.named()) == {"items"}
        torch.testing.assert_close(engine.server.named()["items"], c, rtol=0, atol=1e-10)
    assert 0 < cut < EPOCHS * 3 * int(train.sum())
    for user in range(len(ROWS)):
        here = data.user == user
        items = torch.from_numpy(data.item[here].astype(int))
        both = c[items] + own[user]["own_items"][items]
        expected = torch.sigmoid(both @ own[user]["score.weight"][0] + own[user]["score.bias"]).numpy()
        np.testing.assert_allclose(engine.scores()[here], expected, rtol=0, atol=1e-10)


def test_one_row_by_hand(tmp_path: Path) -> None:
    """In the eleventh round the terms weigh tanh(1) of what the settings say."""
    data = toy(1, np.array([1]), items=2)
    engine = toy_engine(tmp_path, data, method(epochs=1, std=0.3, item_rate=ITEM_RATE))
    start = starts(engine)
    item, label = int(data.item[0]), float(data.label[0])
    c, d, w, b = start["items"][item], start["own_items"][item], start["score.weight"][0], start["score.bias"]
    assert ((d - c) ** 2).mean() < 1
    engine.round(11)
    error = torch.sigmoid(w @ (c + d) + b) - label
    apart, sparse = math.tanh(1.0) * APART * 2 / 3, math.tanh(1.0) * SPARSE / 3
    expected = c - LR * ITEM_RATE * (error * w + apart * (d - c) + sparse * c.sign())
    torch.testing.assert_close(engine.server.named()["items"][item], expected, rtol=0, atol=1e-12)


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
