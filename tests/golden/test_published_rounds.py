"""Three rounds of the published method, computed elsewhere in float64: every parameter within 1e-9."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from arrays import ArrayDataset
from fedpa.data.dataset import Part
from fedpa.federation.rows import ShardRows
from fedpa.federation.server import Server
from fedpa.federation.shard import Shard
from fedpa.methods.fedpa import FedPA
from fedpa.models.adapted import AdaptedMLP, AdapterSettings
from golden import reference
from shared import need

TOLERANCE = 1e-9


@pytest.mark.parametrize("users_per_chunk", [1, 7, 128])
def test_three_published_rounds(tmp_path: Path, users_per_chunk: int) -> None:
    with np.load(need("golden/three_rounds.npz")) as file:
        golden = dict(file)
    data = reference.dataset(golden)
    settings = AdapterSettings(lr=0.1, gate_init="random", dtype="float64", groups=reference.GROUPS)
    model = AdaptedMLP(
        settings,
        FedPA(settings).scope,
        reference.foundation(golden, data),
        data,
        seed=0,
        device=torch.device("cpu"),
        starts=reference.starts(golden),
    )
    rows = ShardRows.of(data, dtype=torch.float64, device=torch.device("cpu"))
    store = Shard.new_store(model, rows, settings, tmp_path)
    shard = Shard(model, rows, settings, store, seed=0, users_per_chunk=users_per_chunk)
    server = Server(model.layout, torch.float64)
    for number in range(3):
        server.step(shard.round(server.state, number))
        _compare_server(golden, number, server.named())
        scores = shard.scores(server.state)
        found = [
            roc_auc_score(rows.labels.numpy()[rows.part == part], scores[rows.part == part])
            for part in (Part.VAL, Part.TEST)
        ]
        np.testing.assert_allclose(found, golden[f"round{number}/auc"], rtol=0, atol=1e-12)
    _compare_personal(golden, data, model, shard)


def _compare_server(golden: reference.Golden, number: int, state: dict[str, torch.Tensor]) -> None:
    compared = 0
    for name, expected in golden.items():
        prefix = f"round{number}/"
        if name.startswith(prefix + "server/"):
            found = _server_parameter(name.removeprefix(prefix + "server/"), state)
        elif name.startswith(prefix + "group/"):
            key, _, rest = name.removeprefix(prefix + "group/").partition("_range")
            layer, _, _, factor, value = rest[0], *rest[1:].split("_")
            table = state[f"layers.{layer}.group.{key}_range.{factor}"][int(value)]
            found = table.T if factor == "a" else table
        else:
            continue
        np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=TOLERANCE, err_msg=name)
        compared += 1
    assert compared >= 30


def _server_parameter(name: str, state: dict[str, torch.Tensor]) -> torch.Tensor:
    if name.startswith("affine_output"):
        return state[name.replace("affine_output", "head")]
    _, index, kind = name.split(".")
    return state[f"layers.{int(index) // 2}.gate.{int(index) % 2}.{kind}"]


def _compare_personal(golden: reference.Golden, data: ArrayDataset, model: AdaptedMLP, shard: Shard) -> None:
    names = [str(n) for n in golden["data/user_feature_names"]]
    users = sorted({int(name.split("/")[2]) for name in golden if name.startswith("final/personal/")})
    assert len(users) == 20
    for user in users:
        local = int(np.searchsorted(golden["data/users"], user))
        stored = torch.from_numpy(shard.store.read(np.array([local])))[0]
        assert model.layout.personal is not None
        changes = model.layout.personal.split(stored[None])
        found = {
            p.name: (p.start(torch.tensor([local]))[0] if callable(p.start) else p.start) + changes[p.name][0]
            for p in model.layout.personal.parameters
        }
        embedding = found["user_embedding"].reshape(len(names), -1)
        for index, name in enumerate(names):
            table = golden[f"final/personal/{user}/embedding_user_features.{name}.weight"]
            expected = table[data.user_codes[local, index]] if table.ndim == 2 else table
            np.testing.assert_allclose(embedding[index].numpy(), expected, rtol=0, atol=TOLERANCE)
        for layer in range(2):
            a = golden[f"final/personal/{user}/loras.{layer}_lora_a"]
            b = golden[f"final/personal/{user}/loras.{layer}_lora_b"]
            np.testing.assert_allclose(found[f"layers.{layer}.user.a"].T.numpy(), a, rtol=0, atol=TOLERANCE)
            np.testing.assert_allclose(found[f"layers.{layer}.user.b"].numpy(), b, rtol=0, atol=TOLERANCE)
