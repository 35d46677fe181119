"""Several batches, epochs, groups and partial participation: the engine, a plain loop and numbers on file agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from arrays import CPU, ArrayDataset, toy, toy_foundation
from fedpa.federation.parameters import Layout
from fedpa.federation.rows import ShardRows, group_sizes, group_values
from fedpa.federation.server import FRACTION_BITS, Server
from fedpa.federation.shard import Shard
from fedpa.methods.fedpa import FedPA
from fedpa.models.adapted import AdaptedMLP, AdapterSettings
from fedpa.models.foundation import Foundation
from golden import plain_loop
from golden.plain_loop import PlainLoop, Problem, Rules

TOLERANCE = 1e-9
USERS = 10
FOLLOWED = (
    "optimizer",
    "lr",
    "adam_betas",
    "adam_eps",
    "epochs",
    "batch_size",
    "participation",
    "weighting",
)
BASE: dict[str, Any] = {"dtype": "float64", "rank": 2, "lr": 0.02, "batch_size": 5, "epochs": 2, "gate_hidden": (3, 2)}


def problem_of(data: ArrayDataset, model: AdaptedMLP, foundation: Foundation, rows: ShardRows) -> Problem:
    """What the loop needs, read out of the package's objects before any round."""
    mlp = foundation.model
    values = {key: codes.tolist() for key, codes in group_values(data).items()}
    return Problem(
        keys=rows.keys.tolist(),
        values=values,
        rows=[np.arange(b, b + n) for b, n in zip(rows.begin, rows.train, strict=True)],
        items=rows.items.numpy(),
        context=rows.context.numpy(),
        labels=rows.labels.numpy(),
        user_codes=data.user_codes[rows.users],
        item_codes=data.item_codes,
        tables={
            f"{side}/{n}": mlp.named_table(side, name)
            for side in ("user", "item", "context")
            for n, (name, _) in enumerate(mlp.features[side])
        },
        frozen={name: value for name, value in mlp.state_dict().items() if name.startswith("layers.")},
        starts={p.name: p.start for p in model.layout.parameters() if isinstance(p.start, Tensor)},
    )


def personal_of(layout: Layout, shard: Shard, users: int) -> dict[str, Tensor]:
    """Personal parameters by name [users, *shape]: what is stored, added to the start."""
    assert layout.personal is not None
    changes = layout.personal.split(torch.from_numpy(shard.store.read(np.arange(users))))
    numbers = torch.from_numpy(shard.rows.users)
    starts = {p.name: p.start(numbers) if callable(p.start) else p.start for p in layout.personal.parameters}
    return {name: starts[name] + change for name, change in changes.items()}


def close(found: Tensor, expected: Tensor, name: str) -> None:
    np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=0, atol=TOLERANCE, err_msg=name)


CASES: dict[str, dict[str, Any]] = {
    "gates of the foundation, half of the users": {"participation": 0.5},
    "gates open, one group": {"gate_init": "open", "groups": ("kind",), "participation": 0.5},
    "gates random, three groups": {"gate_init": "random", "toy_groups": ("kind", "size", "age")},
    "no group": {"groups": ()},
    "context features": {"context": True, "participation": 0.7},
    "unknown values": {"features": "causal", "participation": 0.5, "gate_init": "random"},
    "a personal bias": {"personal_bias": True, "alpha": 4.0},
    "weighted by rows": {"weighting": "rows", "participation": 0.5},
    "gradient descent": {"optimizer": "sgd", "lr": 0.5, "weighting": "rows", "features": "causal"},
    "other moments": {"adam_betas": (0.8, 0.9), "adam_eps": 1e-3, "epochs": 3, "batch_size": 4},
    "one batch, one epoch": {"epochs": 1, "batch_size": 1024, "gate_init": "open", "participation": 0.5},
    "batches of one": {"batch_size": 1, "epochs": 1, "participation": 0.3},
    "dead LoRA": {"lora_init": "zero", "gate_init": "random", "lr": 0.1},
}


@pytest.mark.parametrize("case", CASES)
def test_the_engine_equals_the_loop(tmp_path: Path, case: str) -> None:
    chosen = dict(CASES[case])
    data = toy(
        USERS,
        np.random.default_rng(3).integers(1, 18, USERS),
        context=chosen.pop("context", False),
        groups=chosen.pop("toy_groups", ("kind", "size")),
        features=chosen.pop("features", "reference"),
    )
    settings = AdapterSettings(**(BASE | chosen))
    foundation = toy_foundation(data, dtype=torch.float64)
    model = AdaptedMLP(settings, FedPA(settings).scope, foundation, data, seed=4, device=CPU)
    rows = ShardRows.of(data, dtype=torch.float64, device=CPU)
    sizes = group_sizes(data)
    keys = sizes if settings.groups is None else {key: sizes[key] for key in settings.groups}
    rules = Rules(
        seed=9,
        rank=settings.rank,
        alpha=settings.alpha,
        gate_scale=2.0 + len(keys) if settings.gate_init == "foundation" else 1.0,
        **{name: getattr(settings, name) for name in FOLLOWED},
    )
    loop = PlainLoop(problem_of(data, model, foundation, rows), rules, keys)
    shard = Shard(model, rows, settings, Shard.new_store(model, rows, settings, tmp_path), seed=9, users_per_chunk=5)
    server = Server(model.layout, torch.float64)
    if case == "unknown values":
        assert any(int(table.min()) < 0 for table in rows.groups.values())
    for number in range(3):
        facts = loop.round(number)
        upload = shard.round(server.state, number)
        assert upload.participants == facts["participants"] > 0
        first_batch = upload.loss * 2.0 ** -FRACTION_BITS[torch.float64] / upload.participants
        assert first_batch == pytest.approx(facts["loss"], abs=TOLERANCE)
        server.step(upload)
        named = server.named()
        assert named.keys() == loop.shared.keys() | loop.groups.keys()
        for name, found in named.items():
            close(found, loop.shared[name] if name in loop.shared else torch.stack(loop.groups[name]), name)
    for name, found in personal_of(model.layout, shard, USERS).items():
        close(found, torch.stack([mine[name] for mine in loop.personal]), name)
    expected = [loop.scores(u, np.flatnonzero(rows.user == u)) for u in range(USERS)]
    close(torch.from_numpy(shard.scores(server.state)), torch.cat(expected), "scores")


@pytest.fixture(scope="module")
def stored() -> dict[str, Any]:
    with np.load(plain_loop.FILE) as file:
        return dict(file)


def test_the_file_holds_what_the_loop_computes(stored: dict[str, Any]) -> None:
    problem = plain_loop.from_arrays(stored)
    expected, part = plain_loop.random_problem(1)
    for name, value in plain_loop.to_arrays(expected, part).items():
        np.testing.assert_array_equal(stored[name], value, err_msg=name)
    found = plain_loop.rounds(problem, stored["data/user"])
    assert len(found) > 60
    for name, value in found.items():
        np.testing.assert_allclose(value, stored[name], rtol=0, atol=TOLERANCE, err_msg=name)


@pytest.mark.parametrize("users_per_chunk", [1, 4, 128])
def test_the_engine_computes_what_the_file_holds(tmp_path: Path, stored: dict[str, Any], users_per_chunk: int) -> None:
    rules = plain_loop.RULES
    data, foundation, starts = _stored_objects(stored)
    settings = AdapterSettings(
        dtype="float64",
        gate_hidden=(3, 2),
        gate_init="random",
        **{
            name: getattr(rules, name)
            for name in ["rank", "alpha", "optimizer", "lr", "epochs", "batch_size", "participation", "weighting"]
        },
    )
    model = AdaptedMLP(settings, FedPA(settings).scope, foundation, data, seed=0, device=CPU, starts=starts)
    rows = ShardRows.of(data, dtype=torch.float64, device=CPU)
    store = Shard.new_store(model, rows, settings, tmp_path)
    shard = Shard(model, rows, settings, store, seed=rules.seed, users_per_chunk=users_per_chunk)
    server = Server(model.layout, torch.float64)
    for number in range(plain_loop.ROUNDS):
        upload = shard.round(server.state, number)
        assert upload.participants == stored[f"round{number}/participants"]
        server.step(upload)
        for name, found in server.named().items():
            close(found, torch.from_numpy(stored[f"round{number}/server/{name}"]), name)
        close(torch.from_numpy(shard.scores(server.state)), torch.from_numpy(stored[f"round{number}/scores"]), "scores")
    for name, found in personal_of(model.layout, shard, data.n_users).items():
        close(found, torch.from_numpy(stored[f"personal/{name}"]), name)


def _stored_objects(stored: dict[str, Any]) -> tuple[ArrayDataset, Foundation, dict[str, Tensor]]:
    problem = plain_loop.from_arrays(stored)
    sizes = {
        side: {f"{side}{n}": len(stored[f"tables/{side}/{n}"]) for n in range(stored[f"data/{side}_codes"].shape[1])}
        for side in ("user", "item")
    }
    data = ArrayDataset(
        user_ids=stored["data/keys"],
        user_codes=stored["data/user_codes"],
        item_codes=stored["data/item_codes"],
        user=stored["data/user"],
        item=stored["data/item"],
        label=stored["data/label"],
        part=stored["data/part"],
        groups={key: stored[f"data/values/{key}"] for key in plain_loop.SIZES},
        sizes={**sizes, "groups": dict(plain_loop.SIZES)},
    )
    foundation = toy_foundation(data, dtype=torch.float64)
    mlp = foundation.model
    with torch.no_grad():
        for side in sizes:
            for n, (name, _) in enumerate(mlp.features[side]):
                mlp.named_table(side, name).copy_(problem.tables[f"{side}/{n}"])
        for name, value in mlp.state_dict().items():
            source = problem.frozen if name.startswith("layers.") else problem.starts
            if not name.startswith("tables."):
                value.copy_(source[name])
    return data, foundation, problem.starts
