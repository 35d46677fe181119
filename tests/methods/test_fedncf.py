"""FedNCF against a module of PyTorch, trained user by user."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from arrays import ToyEngine, toy, toy_engine
from fedpa.data.dataset import Part
from fedpa.errors import FedpaError
from fedpa.methods import FrozenFoundation
from fedpa.methods.fedncf import FedNCF, FedNCFSettings
from fedpa.settings import Settings

WIDTH, HIDDEN, ITEMS = 3, (5, 4), 9
ROWS = np.array([3, 5, 9, 4, 30, 6, 12, 5])


def method(preset: str = "default", **values: Any) -> FedNCF:
    chosen = {"width": WIDTH, "std": 0.5, "hidden": HIDDEN, "dtype": "float64"} | values
    return cast(FedNCF, FedNCF.configured(preset, chosen))


class NeuMF(nn.Module):
    """He et al. (2017), section 3.4, for one user."""

    def __init__(self) -> None:
        super().__init__()
        self.user_gmf, self.user_mlp = (nn.Parameter(torch.zeros(1, WIDTH)) for _ in range(2))
        self.items_gmf, self.items_mlp = (nn.Embedding(ITEMS, WIDTH) for _ in range(2))
        self.layers = nn.ModuleList([nn.Linear(2 * WIDTH, HIDDEN[0]), nn.Linear(*HIDDEN)])
        self.head = nn.Linear(WIDTH + HIDDEN[1], 1)
        self.double()

    def forward(self, items: Tensor) -> Tensor:
        x = torch.cat([self.user_mlp.expand(len(items), -1), self.items_mlp(items)], 1)
        for layer in self.layers:
            x = torch.relu(layer(x))
        product = self.user_gmf * self.items_gmf(items)
        found: Tensor = self.head(torch.cat([product, x], 1)).squeeze(1)
        return found


def name_of(parameter: str) -> str:
    """A parameter of the module as the method names it."""
    table = parameter.partition(".")[0]
    return parameter if table in {"layers", "head"} else table.replace("_", ".")


def starts(engine: ToyEngine) -> dict[str, Tensor]:
    """The method's own start, by the module's names."""
    layout = engine.model.layout
    found = {p.name: p.start for p in layout.parameters()} | {t.name: t.start for t in layout.tables}
    return {name: cast(Tensor, found[name_of(name)]).clone() for name in NeuMF().state_dict()}


@pytest.mark.parametrize(
    "chosen",
    [
        {"optimizer": "sgd", "lr": 0.3, "item_rate": 0.6, "epochs": 2},
        {"optimizer": "adam", "lr": 0.02, "item_rate": 0.4, "epochs": 4},
    ],
)
def test_rounds_are_those_of_a_plain_loop(tmp_path: Path, chosen: dict[str, Any]) -> None:
    data = toy(len(ROWS), ROWS, items=ITEMS)
    engine = toy_engine(tmp_path, data, method(**chosen))
    shared, train = starts(engine), data.part == Part.TRAIN
    own = [{n: shared[n].clone() for n in ("user_gmf", "user_mlp")} for _ in ROWS]
    for number in (1, 2):
        engine.round(number)
        total = {name: torch.zeros_like(value) for name, value in shared.items()}
        for user in range(len(ROWS)):
            net = NeuMF()
            net.load_state_dict(shared | own[user])
            here = train & (data.user == user)
            items, labels = torch.from_numpy(data.item[here].astype(int)), torch.from_numpy(data.label[here]).double()
            tables = [*net.items_gmf.parameters(), *net.items_mlp.parameters()]
            others = [p for name, p in net.named_parameters() if not name.startswith("items")]
            groups = [{"params": tables, "lr": chosen["lr"] * chosen["item_rate"] * len(ROWS)}, {"params": others}]
            kind = torch.optim.SGD if chosen["optimizer"] == "sgd" else torch.optim.Adam
            optimizer = kind(groups, lr=chosen["lr"])
            for _ in range(chosen["epochs"]):
                optimizer.zero_grad()
                nn.functional.binary_cross_entropy_with_logits(net(items), labels).backward()
                optimizer.step()
            after = {name: value.detach().clone() for name, value in net.state_dict().items()}
            own[user] = {name: after[name] for name in own[user]}
            for name, value in after.items():
                total[name] += value - shared[name]
        shared = {name: value + total[name] / len(ROWS) for name, value in shared.items()}
        served = engine.server.named()
        for name in set(shared) - set(own[0]):
            torch.testing.assert_close(served[name_of(name)], shared[name], rtol=0, atol=1e-10)
    scores, net = engine.scores(), NeuMF()
    for user in range(len(ROWS)):
        net.load_state_dict(shared | own[user])
        here = data.user == user
        expected = torch.sigmoid(net(torch.from_numpy(data.item[here].astype(int)))).detach().numpy()
        np.testing.assert_allclose(scores[here], expected, rtol=0, atol=1e-10)


def test_only_the_users_vectors_are_personal() -> None:
    found = method()
    names = ("user.gmf", "user.mlp", "items.gmf", "items.mlp", "layers.0.weight", "head.bias")
    assert [found.scope(name).kind for name in names] == ["personal"] * 2 + ["shared"] * 4


def test_above_a_foundation_it_starts_at_the_foundation(tmp_path: Path) -> None:
    data = toy(8, np.full(8, 10))
    engine = toy_engine(tmp_path, data, method("foundation", optimizer="sgd", lr=0.3, epochs=2))
    rows = engine.shards[0].rows
    expected = FrozenFoundation(Settings()).scores(engine.foundation, data, rows)
    np.testing.assert_allclose(engine.shards[0].scores(engine.server.state), expected, rtol=0, atol=1e-6)
    before = engine.scores()
    engine.round(1)
    assert (np.abs(engine.scores() - before) > 1e-3).any()


def test_the_published_preset_is_not_compared() -> None:
    found = cast(FedNCFSettings, FedNCF.configured("published", {}).settings)
    chosen = (found.optimizer, found.lr, found.item_rate, found.batch_size, found.width, found.epochs, found.rounds)
    assert chosen == ("sgd", 0.1, None, 256, 32, 1, 100)
    assert found.hidden == (32, 16, 8)
    assert "published" not in FedNCF.compared


@pytest.mark.parametrize("lr", [1e20, 1e38])
def test_too_large_a_rate_says_so(tmp_path: Path, lr: float) -> None:
    found = method(optimizer="sgd", lr=lr, dtype="float32", epochs=3)
    engine = toy_engine(tmp_path, toy(8, np.full(8, 10)), found)
    with pytest.raises(FedpaError, match="training diverged"):
        engine.round(1)
