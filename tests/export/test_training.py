"""The NumPy client's round against the shard's round of that single user."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest
import torch
from safetensors.numpy import load_file

from exported import EXAMPLES, LIGHT, PLAIN, Exported, check_scores, exported, foundation_of
from fedpa.data.prepare import prepare
from fedpa.data.sources import open_source
from fedpa.draws import user_keys
from fedpa.federation.rows import ShardRows
from fedpa.federation.schedule import participants
from fedpa.federation.server import FRACTION_BITS, Upload
from fedpa.federation.shard import Shard
from fedpa.methods.method import FederatedMethod
from fedpa.models.foundation import Foundation
from fedpa.settings import Settings
from prepared import Small, small
from train_on_device import Array, Device, key, takes_part, train

ROUND = 3
RUNS: dict[str, dict[str, Any]] = {
    "default": {},
    "repaired": {"preset": "repaired"},
    "reference": {"preset": "reference"},
    "no-group-lora": {"preset": "no-group-lora"},
    "no-gate": {"preset": "no-gate", "optimizer": "adam", "lr": 0.01},
    "no-personal-embeddings": {"preset": "no-personal-embeddings"},
    "by-rows": {"weighting": "rows", "table_mean": "participants"},
    "proximal": {"proximal": 0.5, "epochs": 3},
    "batches": {"batch_size": 4},
    "batches-adam": {"preset": "repaired", "batch_size": 4, "epochs": 2},
    "item-counts": {"item_counts": 4},
    **{name: {"method": name} for name in ("local-only", "ffa-lora", "fedsa-lora", "biases")},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return small(tmp_path_factory)


@pytest.fixture(scope="module")
def light(made: Small) -> Foundation:
    return foundation_of(made, LIGHT)


@pytest.fixture(scope="module")
def plain(made: Small) -> Foundation:
    return foundation_of(made, PLAIN)


def shard_of_one(device: Exported, local: int, folder: Path) -> Shard:
    """A shard that has a single user, as far as the run brought it."""
    run, method = device.run, device.run.method
    assert isinstance(method, FederatedMethod)
    rows = ShardRows.of(
        run.dataset, run.rows.users[[local]], dtype=method.settings.torch_dtype, device=torch.device("cpu")
    )
    rows = method.rows(run.foundation, run.dataset, rows, run.rows.tally)
    store = Shard.new_store(run.model, rows, method.settings, folder)
    store.begin(np.array([0]), Shard.touched_rows(run.model, rows), 0)
    store.write(np.array([0]), run.recommender.shard.store.read(np.array([local])))
    store.commit()
    return Shard(run.model, rows, method.settings, store, seed=run.config["seed"], rule=method)


def vectors(
    device: Exported, opened: Device, sent: dict[str, Array]
) -> list[tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
    """Sums and weights of a device's upload, as the engine orders them."""
    found = []
    for vector in device.run.model.layout.uploaded:
        names = [parameter.name for parameter in vector.parameters]
        row = opened.card["groups"][vector.scope.key]["row"] if vector.scope.kind == "group" else 0
        total, weight = np.zeros((vector.values, vector.size), np.int64), np.zeros(vector.values, np.int64)
        if row >= 0:
            total[row] = np.concatenate([sent[name].ravel() for name in names])
            weight[row] = sent["weight"][0]
        else:
            assert not sent.keys() & {*names}
        found.append((total, sent.get(f"{names[0]}.weight", weight)))
    return found


def close(apart: Array, settings: Settings) -> None:
    """Within 1e-5, but where Adam divides a float32 gradient that is all rounding by its own size."""
    if settings.optimizer == "adam" and settings.dtype == "float32":
        assert np.mean(apart >= 1e-5) < 1e-3
        assert apart.max() < settings.lr / 100
    else:
        assert apart.max() < 1e-5


def check(device: Exported, folder: Path) -> None:
    """Some users' rounds: what is sent, and what is kept."""
    settings = device.run.method.settings
    unit = 2.0 ** FRACTION_BITS[settings.torch_dtype]
    for local in np.flatnonzero(device.run.rows.train[:9] > 0)[:5]:
        room = folder / str(local)
        room.mkdir()
        shard = shard_of_one(device, int(local), room)
        upload: Upload = shard.round(device.run.server.state, ROUND)
        user = str(device.user(int(local)))
        opened = Device(device.folder, user)
        sent, adapter = train(opened, opened.rows(device.folder / "rows" / f"{user}.csv"), ROUND)
        assert sent["rows"][0] == upload.rows
        assert abs(sent["loss"][0] - upload.loss) < 1e-5 * unit
        largest = 0.0
        for (total, weight), expected, members in zip(
            vectors(device, opened, sent), upload.sums, upload.weights, strict=True
        ):
            assert np.array_equal(weight, members.numpy())
            apart = np.abs(total - expected.numpy().reshape(total.shape)) / unit / sent["weight"][0]
            close(apart, settings)
            largest = max(largest, float(np.abs(expected.numpy()).max()))
        if upload.sums:
            assert largest > 1e-4 * unit
        weights = shard.weights_of(np.array([0]), device.run.server.state)[0].numpy()
        for name, value in adapter.items():
            if name in opened.parameters:
                span = shard.layout.places[name]
                close(np.abs(value.ravel() - weights[span.begin : span.end]), settings)


@pytest.mark.parametrize("name", RUNS)
def test_a_round_is_the_shards(made: Small, light: Foundation, tmp_path: Path, name: str) -> None:
    check(exported(tmp_path, light, made.dataset, dtype="float64", **RUNS[name]), tmp_path)


@pytest.mark.parametrize("name", ["default", "repaired", "batches"])
def test_a_round_in_single_precision_is_the_shards(made: Small, light: Foundation, tmp_path: Path, name: str) -> None:
    check(exported(tmp_path, light, made.dataset, **RUNS[name]), tmp_path)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["default", "repaired"])
def test_a_round_without_a_past_is_the_shards(
    made: Small, plain: Foundation, tmp_path: Path, name: str, dtype: str
) -> None:
    check(exported(tmp_path, plain, made.dataset, dtype=dtype, **RUNS[name]), tmp_path)


def test_a_round_on_published_features_is_the_shards(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    other = small(tmp_path_factory, "reference")
    check(exported(tmp_path, foundation_of(other, PLAIN), other.dataset), tmp_path)


def test_row_features_are_read_from_the_devices_own_log(made: Small, tmp_path: Path) -> None:
    source = open_source("kuairand-pure", made.folder / "raw")
    dataset = prepare(source, tmp_path / "dataset", row_features=["tab", "hour"])
    device = exported(tmp_path, foundation_of(made._replace(dataset=dataset), PLAIN), dataset)
    check(device, tmp_path)
    check_scores(device)


def test_a_run_whose_devices_keep_moments_is_refused(made: Small, plain: Foundation, tmp_path: Path) -> None:
    device = exported(tmp_path, plain, made.dataset, keep_optimizer=True, optimizer="adam")
    user = str(device.user(0))
    opened = Device(device.folder, user)
    with pytest.raises(SystemExit, match="keep_optimizer"):
        train(opened, opened.rows(device.folder / "rows" / f"{user}.csv"), ROUND)


def test_who_takes_part_is_the_engines_draw(made: Small, tmp_path: Path) -> None:
    device = exported(tmp_path, made.foundation, made.dataset, users=None, participation=0.4)
    everyone = np.arange(len(device.run.rows.users))
    drawn = participants(0, ROUND, 0.4, everyone, device.run.rows.keys)
    assert 0 < len(drawn) < len(everyone)
    found = [takes_part(Device(device.folder, str(device.user(int(local)))), ROUND) for local in everyone]
    assert np.array_equal(np.flatnonzero(found), drawn)


def test_keys_of_users_are_the_engines() -> None:
    for ids in ([0, 7, -3, 2**62], ["ann", "Åse", "../x", ""]):
        assert [int(key(user)) for user in ids] == user_keys(pl.Series(ids)).tolist()


def test_the_example_writes_what_leaves_and_what_stays(made: Small, tmp_path: Path) -> None:
    device = exported(tmp_path, made.foundation, made.dataset)
    user = str(device.user(int(np.flatnonzero(device.run.rows.train > 0)[0])))
    command = [
        *(sys.executable, str(EXAMPLES / "train_on_device.py"), str(device.folder), "--user", user),
        *("--rows", str(device.folder / "rows" / f"{user}.csv"), "--round", str(ROUND), "--out", str(tmp_path / "out")),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    sent, stays = (load_file(tmp_path / "out" / f"{name}.safetensors") for name in ("upload", "adapter"))
    scopes = {name: scope.kind for name, scope in device.run.model.layout.scopes.items()}
    assert {scopes.get(name.removesuffix(".weight"), "") for name in sent} <= {"shared", "group", ""}
    assert {value.dtype for value in sent.values()} == {np.dtype(np.int64)}
    assert {scopes[name] for name in stays} == {"personal"}
