"""FedAvg, FedProx, FedRep and Ditto against plain loops over users with PyTorch's optimisers, in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from arrays import ArrayDataset, ToyEngine, toy, toy_engine
from fedpa.data.dataset import Part
from fedpa.draws import derive_seed, uniform
from fedpa.methods import FederatedMethod, find_method
from fedpa.models.mlp import MLP
from fedpa.models.pretrain import PretrainSettings, untrained

EXACT: dict[str, Any] = {"rtol": 0, "atol": 1e-12}
LR = 0.3
EPS = 1e-2  # with a smaller one Adam turns the rounding of gradients near zero into steps
SMALL: dict[str, Any] = {
    "embedding": 3,
    "hidden": (6, 4),
    "dtype": "float64",
    "optimizer": "sgd",
    "lr": LR,
    "epochs": 1,
    "proximal": 0.0,
    "adam_eps": EPS,
}

Weights = dict[str, Tensor]


def data() -> ArrayDataset:
    """Seven users of unequally many rows, each of whom trains on every code of the items and of the context."""
    found = toy(7, np.array([30, 60, 45, 31, 33, 38, 52]), items=6, context=True)
    found.context_codes[:] = (np.arange(found.n_rows) % 5)[:, None]
    train = found.part == Part.TRAIN
    for user in range(7):
        mine = train & (found.user == user)
        assert len(np.unique(found.item[mine])) == 6
        assert len(np.unique(found.context_codes[mine])) == 5
    return found


def engine_of(folder: Path, found: ArrayDataset, name: str, preset: str = "default", **values: Any) -> ToyEngine:
    method = cast(FederatedMethod, find_method(name).configured(preset, SMALL | values))
    return toy_engine(folder, found, method)


def start_of(engine: ToyEngine) -> MLP:
    """The backbone as a module, at the start that the method documents."""
    settings = cast(Any, engine.method.settings)
    if settings.on_foundation:
        return copy.deepcopy(engine.foundation.model).requires_grad_()
    shape = PretrainSettings(embedding=settings.embedding, hidden=settings.hidden)
    return untrained(engine.data, shape, derive_seed(0, "start/whole")).double()


def loss_of(model: MLP, found: ArrayDataset, user: int) -> Tensor:
    """Mean click loss of a user's training rows."""
    rows = np.flatnonzero((found.user == user) & (found.part == Part.TRAIN))
    return binary_cross_entropy_with_logits(logits(model, found, rows), torch.from_numpy(found.label[rows]).double())


def logits(model: MLP, found: ArrayDataset, rows: Any) -> Tensor:
    users, items = found.user[rows].astype(np.int64), found.item[rows].astype(np.int64)
    codes = found.user_codes[users], found.item_codes[items], found.context_codes[rows]
    return cast(Tensor, model(*(torch.from_numpy(code).long() for code in codes)))


def weights_of(model: nn.Module) -> Weights:
    return {name.replace(".weight", "") if "tables" in name else name: w for name, w in model.named_parameters()}


def train(
    model: MLP,
    loss: Callable[[], Tensor],
    steps: int,
    names: Iterable[str] | None = None,
    optimizer: str = "sgd",
) -> None:
    """Steps of one optimiser on the named weights, or on all."""
    moving = [w for n, w in weights_of(model).items() if names is None or n in names]
    chosen = torch.optim.Adam(moving, lr=LR, eps=EPS) if optimizer == "adam" else torch.optim.SGD(moving, lr=LR)
    for _ in range(steps):
        chosen.zero_grad()
        loss().backward()
        chosen.step()


def averaged(server: MLP, devices: list[MLP], shares: Any = None, names: Iterable[str] | None = None) -> None:
    """Replace the server's weights by the devices' mean."""
    counts = np.ones(len(devices)) if shares is None else shares
    share = torch.from_numpy(counts / counts.sum())
    with torch.no_grad():
        for name, weight in weights_of(server).items():
            if names is None or name in names:
                each = torch.stack([weights_of(device)[name] for device in devices])
                weight.copy_(torch.tensordot(share, each, 1))


def assert_state(engine: ToyEngine, server: MLP, prefix: str = "", names: Iterable[str] | None = None) -> None:
    expected = {prefix + n: w.detach() for n, w in weights_of(server).items() if names is None or n in names}
    assert engine.server.named().keys() == expected.keys()
    for name, value in engine.server.named().items():
        torch.testing.assert_close(value, expected[name], **EXACT)


def assert_scores(engine: ToyEngine, devices: list[MLP]) -> None:
    """Every row of every user, as its own model scores it."""
    found = engine.data
    with torch.no_grad():
        expected = torch.cat([logits(m, found, np.flatnonzero(found.user == u)) for u, m in enumerate(devices)])
    np.testing.assert_allclose(engine.scores(), expected.sigmoid().numpy(), **EXACT)


def test_one_row_of_one_user_by_hand(tmp_path: Path) -> None:
    """Back-propagation through one hidden layer, written out; rows of tables that the row does not touch stay."""
    found = toy(1, np.array([1]), items=5)
    found._rows["label"][:] = 1
    engine = engine_of(tmp_path, found, "fedavg", hidden=(5,))
    before = {name: value.numpy() for name, value in engine.server.named().items()}
    user_rows = found.user_codes[0] + [0, 3]  # features of 3 and 3 codes
    item_rows = found.item_codes[found.item[0]] + [0, 4]  # of 4 and 3
    x = np.concatenate([before["tables.user"][user_rows].ravel(), before["tables.item"][item_rows].ravel()])
    weight, head = before["layers.0.weight"], before["head.weight"][0]
    z = weight @ x + before["layers.0.bias"]
    hidden = np.maximum(z, 0)
    error = 1 / (1 + np.exp(-(head @ hidden + before["head.bias"][0]))) - 1
    back = error * head * (z > 0)
    expected = {name: value.copy() for name, value in before.items()}
    expected["head.bias"] -= LR * error
    expected["head.weight"] -= LR * error * hidden
    expected["layers.0.bias"] -= LR * back
    expected["layers.0.weight"] -= LR * np.outer(back, x)
    of_x = (back @ weight).reshape(2, 2, -1)
    expected["tables.user"][user_rows] -= LR * of_x[0]
    expected["tables.item"][item_rows] -= LR * of_x[1]
    engine.round(1)
    assert np.abs(of_x).min() > 0
    for name, value in engine.server.named().items():
        np.testing.assert_allclose(value.numpy(), expected[name], err_msg=name, **EXACT)


@pytest.mark.parametrize("preset", ["default", "foundation"])
@pytest.mark.parametrize("values", [{}, {"epochs": 3}, {"epochs": 2, "weighting": "rows"}, {"optimizer": "adam"}])
def test_fedavg_is_the_mean_of_what_devices_train(tmp_path: Path, preset: str, values: dict[str, Any]) -> None:
    found = data()
    engine = engine_of(tmp_path, found, "fedavg", preset, **values)
    server = start_of(engine)
    assert_state(engine, server)
    optimizer = values.get("optimizer", "sgd")
    shares = engine.shards[0].rows.train if "weighting" in values else None
    for number in (1, 2):
        devices = [copy.deepcopy(server) for _ in range(7)]
        for user, device in enumerate(devices):
            train(device, lambda: loss_of(device, found, user), values.get("epochs", 1), optimizer=optimizer)  # noqa: B023
        averaged(server, devices, shares)
        engine.round(number)
        assert_state(engine, server)
    assert_scores(engine, [server] * 7)


def test_fedavg_reports_the_loss_before_the_round(tmp_path: Path) -> None:
    found = data()
    engine = engine_of(tmp_path, found, "fedavg", epochs=3)
    expected = sum(loss_of(start_of(engine), found, user).item() for user in range(7))
    assert engine.round(1).loss * 2.0**-44 == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_fedprox_pulls_towards_what_was_downloaded(tmp_path: Path, optimizer: str) -> None:
    found, mu = data(), 0.7
    engine = engine_of(tmp_path, found, "fedprox", epochs=2, proximal=mu, optimizer=optimizer)
    server = start_of(engine)
    for number in (1, 2):
        devices = [copy.deepcopy(server) for _ in range(7)]
        origin = {name: weight.detach().clone() for name, weight in weights_of(server).items()}
        for user, device in enumerate(devices):

            def objective(device: MLP = device, user: int = user) -> Tensor:
                distance = sum(((w - origin[n]) ** 2).sum() for n, w in weights_of(device).items())  # noqa: B023
                return loss_of(device, found, user) + mu / 2 * distance

            train(device, objective, 2, optimizer=optimizer)
        averaged(server, devices)
        engine.round(number)
        assert_state(engine, server)


def test_fedprox_is_fedavg_without_the_term_and_in_the_first_step(tmp_path: Path) -> None:
    found = data()
    states = {}
    cases: dict[str, dict[str, Any]] = {
        "avg": {},
        "prox, one step": {"proximal": 9.0},
        "avg, two": {"epochs": 2},
        "prox 0, two": {"epochs": 2, "proximal": 0.0},
        "prox, two": {"epochs": 2, "proximal": 9.0},
    }
    for name, values in cases.items():
        engine = engine_of(tmp_path / name, found, "fedavg" if "avg" in name else "fedprox", **values)
        engine.round(1)
        states[name] = torch.cat([table.flatten() for table in engine.server.state])
    assert torch.equal(states["avg"], states["prox, one step"])
    assert torch.equal(states["avg, two"], states["prox 0, two"])
    assert not torch.equal(states["avg, two"], states["prox, two"])


HEAD = ("head.weight", "head.bias")


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_fedrep_trains_the_head_then_the_body(tmp_path: Path, optimizer: str) -> None:
    """Each phase has a fresh optimiser; the head stays on the device, the body is averaged."""
    found = data()
    engine = engine_of(tmp_path, found, "fedrep", head_epochs=3, epochs=2, optimizer=optimizer)
    server = start_of(engine)
    body = [name for name in weights_of(server) if name not in HEAD]
    heads = [{name: weights_of(server)[name].detach().clone() for name in HEAD} for _ in range(7)]
    for number in (1, 2, 3):
        devices = [copy.deepcopy(server) for _ in range(7)]
        for user, device in enumerate(devices):
            with torch.no_grad():
                for name, value in heads[user].items():
                    weights_of(device)[name].copy_(value)
            downloaded = {name: weights_of(device)[name].detach().clone() for name in body}
            train(device, lambda: loss_of(device, found, user), 3, HEAD, optimizer)  # noqa: B023
            assert all(torch.equal(weights_of(device)[name], downloaded[name]) for name in body)
            heads[user] = {name: weights_of(device)[name].detach().clone() for name in HEAD}
            train(device, lambda: loss_of(device, found, user), 2, body, optimizer)  # noqa: B023
        averaged(server, devices, names=body)
        engine.round(number)
        assert_state(engine, server, names=body)
        kept = engine.shards[0].weights_of(np.arange(7), engine.server.state)
        blocks = engine.model.layout.views(kept)
        for user in range(7):
            for name in HEAD:
                torch.testing.assert_close(blocks[name][user], heads[user][name], **EXACT)


@pytest.mark.parametrize("preset", ["default", "foundation"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_ditto_trains_a_global_and_an_own_model(tmp_path: Path, preset: str, optimizer: str) -> None:
    """Trajectories of w and of every v; v is pulled to the w that was downloaded and scores."""
    found, strength, lr = data(), 0.4, 0.05
    engine = engine_of(tmp_path, found, "ditto", preset, closeness=strength, epochs=2, lr=lr, optimizer=optimizer)
    server = start_of(engine)
    own = [copy.deepcopy(server) for _ in range(7)]
    # Of the users' table a device holds the rows of its user alone; the others stay.
    is_own = torch.zeros(7, 6, 1, dtype=torch.float64)
    for user, codes in enumerate(found.user_codes):
        is_own[user, torch.from_numpy(codes).long() + torch.tensor([0, 3])] = 1

    def optimise(model: MLP, objective: Callable[[], Tensor]) -> None:
        weights = list(model.parameters())
        chosen = torch.optim.Adam(weights, lr=lr, eps=EPS) if optimizer == "adam" else torch.optim.SGD(weights, lr=lr)
        for _ in range(2):
            chosen.zero_grad()
            objective().backward()
            chosen.step()

    for number in (1, 2, 3):
        devices = [copy.deepcopy(server) for _ in range(7)]
        downloaded = {name: weight.detach().clone() for name, weight in weights_of(server).items()}
        for user in range(7):

            def pulled(user: int = user) -> Tensor:
                distance = torch.zeros((), dtype=torch.float64)
                for name, weight in weights_of(own[user]).items():
                    square = (weight - downloaded[name]) ** 2  # noqa: B023
                    distance = distance + (square * is_own[user] if name == "tables.user" else square).sum()
                return loss_of(own[user], found, user) + strength / 2 * distance

            optimise(devices[user], lambda: loss_of(devices[user], found, user))  # noqa: B023
            optimise(own[user], pulled)
        averaged(server, devices)
        engine.round(number)
        assert_state(engine, server, "global.")
        assert_scores(engine, own)
    kept = engine.shards[0].weights_of(np.arange(7), engine.server.state)
    for name, block in engine.model.layout.views(kept).items():
        if name.startswith("own."):
            expected = torch.stack([weights_of(model)[name.removeprefix("own.")].detach() for model in own])
            torch.testing.assert_close(block, expected, **EXACT)


def test_ditto_without_the_pull_trains_alone(tmp_path: Path) -> None:
    """With lambda = 0 the own model is the user's alone, and w is FedAvg's."""
    found = data()
    engine = engine_of(tmp_path / "ditto", found, "ditto", closeness=0.0, epochs=2)
    plain = engine_of(tmp_path / "fedavg", found, "fedavg", epochs=2)
    own = [start_of(engine) for _ in range(7)]
    for number in (1, 2):
        for user, model in enumerate(own):
            train(model, lambda: loss_of(model, found, user), 2)  # noqa: B023
        engine.round(number)
        plain.round(number)
    named = {name.removeprefix("global."): value for name, value in engine.server.named().items()}
    for name, value in plain.server.named().items():
        torch.testing.assert_close(named[name], value, **EXACT)
    assert_scores(engine, own)


@pytest.mark.parametrize(("name", "uploaded"), [("fedavg", 1.0), ("fedprox", 1.0), ("ditto", 0.5)])
def test_what_is_uploaded(tmp_path: Path, name: str, uploaded: float) -> None:
    engine = engine_of(tmp_path, data(), name)
    sizes = engine.model.layout.sizes_by_scope()
    weights = sum(p.numel() for p in start_of(engine).parameters())
    assert sizes["shared"] == weights == uploaded * sum(sizes.values())
    assert engine.round(1).weights_up == 7 * weights


def test_fedrep_uploads_all_but_the_head(tmp_path: Path) -> None:
    engine = engine_of(tmp_path, data(), "fedrep")
    assert not set(HEAD) & set(engine.server.named())
    assert engine.model.layout.sizes_by_scope()["personal"] == 4 + 1


@pytest.mark.parametrize("name", ["fedavg", "fedrep"])
def test_a_kept_optimiser_is_one_adam_per_device_and_phase(tmp_path: Path, name: str) -> None:
    """Moments and step counts of PyTorch's Adam, kept over rounds while the weights are replaced by the server's."""
    found = data()
    values: dict[str, Any] = {"head_epochs": 3} if name == "fedrep" else {}
    engine = engine_of(
        tmp_path, found, name, optimizer="adam", keep_optimizer=True, epochs=2, lr=0.05, participation=0.7, **values
    )
    server = start_of(engine)
    names = [*weights_of(server)]
    body = [name for name in names if name not in HEAD]
    phases = [(HEAD, 3), (body, 2)] if name == "fedrep" else [(names, 2)]
    sent = body if name == "fedrep" else names
    devices = [copy.deepcopy(server) for _ in range(7)]
    optimizers = [
        [torch.optim.Adam([weights_of(device)[n] for n in moving], lr=0.05, eps=EPS) for moving, _ in phases]
        for device in devices
    ]
    keys, counts = engine.shards[0].rows.keys, set()
    for number in range(1, 6):
        taking = np.flatnonzero(uniform(0, "participate", (number,), keys) < 0.7)
        counts.add(len(taking))
        for user in taking.tolist():
            device = devices[user]
            with torch.no_grad():
                for downloaded in sent:
                    weights_of(device)[downloaded].copy_(weights_of(server)[downloaded])
            for optimizer, (_, epochs) in zip(optimizers[user], phases, strict=True):
                for _ in range(epochs):
                    device.zero_grad()
                    loss_of(device, found, user).backward()
                    optimizer.step()
        averaged(server, [devices[user] for user in taking], names=sent)
        assert engine.round(number).participants == len(taking)
        assert_state(engine, server, names=sent)
    assert len(counts) > 1
