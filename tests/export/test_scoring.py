"""Scores of the exported graph in ONNX Runtime against PyTorch's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exported import EXAMPLES, LIGHT, PLAIN, check_scores, exported, foundation_of
from fedpa import export
from fedpa.data.dataset import Part
from fedpa.methods import FrozenFoundation
from fedpa.models.foundation import Foundation
from fedpa.settings import Settings
from prepared import Small, small
from score_on_device import Scorer
from train_on_device import Device

WITHOUT = """
import builtins, runpy, sys
real = builtins.__import__
def guarded(name, *arguments, **options):
    if name.split(".")[0] in ("torch", "fedpa", "polars", "onnx"):
        raise ImportError(f"{name} is not on this device")
    return real(name, *arguments, **options)
builtins.__import__ = guarded
sys.path.insert(0, sys.argv[1])
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
RUNS: dict[str, dict[str, Any]] = {
    "default": {},
    "repaired": {"preset": "repaired"},
    "reference": {"preset": "reference"},
    "float64": {"dtype": "float64"},
    "item-counts": {"item_counts": 4},
    "no-gate": {"preset": "no-gate"},
    "no-group-lora": {"preset": "no-group-lora"},
    "no-user-lora": {"preset": "no-user-lora"},
    "no-lora": {"preset": "no-lora"},
    "no-personal-embeddings": {"preset": "no-personal-embeddings"},
    **{
        name: {"method": name}
        for name in (
            "local-only", "fedit", "ffa-lora", "fedsa-lora", "personal-lora", "head-only", "user-bias", "biases",
        )
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return small(tmp_path_factory)


@pytest.fixture(scope="module")
def light(made: Small) -> Foundation:
    return foundation_of(made, LIGHT)


@pytest.mark.parametrize("name", RUNS)
def test_scores_are_pytorchs(made: Small, light: Foundation, tmp_path: Path, name: str) -> None:
    check_scores(exported(tmp_path, light, made.dataset, **RUNS[name]))


@pytest.mark.parametrize("features", ["causal", "reference"])
def test_scores_of_a_foundation_without_a_past_are_pytorchs(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, features: Any
) -> None:
    plain = small(tmp_path_factory, features)
    check_scores(exported(tmp_path, foundation_of(plain, PLAIN), plain.dataset))


@pytest.mark.parametrize("preset", ["default", "repaired", "no-personal-embeddings"])
def test_without_an_adapter_the_graph_is_the_foundation(made: Small, tmp_path: Path, preset: str) -> None:
    device = exported(tmp_path, made.foundation, made.dataset, users=None, preset=preset)
    export(device.run, tmp_path / "better", only_if_better=True)
    cards = {file.stem: json.loads(file.read_text()) for file in (tmp_path / "better" / "adapters").glob("*.json")}
    user = next(user for user, card in cards.items() if not card["adapter"])
    opened, scorer = Device(tmp_path / "better", user), Scorer(tmp_path / "better")
    rows = opened.rows(device.folder / "rows" / f"{user}.csv")
    plain = FrozenFoundation(Settings()).scores(made.foundation, made.dataset, device.run.rows)
    local = np.flatnonzero(device.run.dataset.user_ids.gather(device.run.rows.users).cast(str).to_numpy() == user)[0]
    here = np.flatnonzero((device.run.rows.user == local) & (device.run.rows.part == Part.TRAIN))
    known = opened.inputs(rows, rows.item[rows.train], rows.before[rows.train], rows.counts[rows.train], {})
    weights = opened.weights() | {"item_bias": np.zeros((len(here), 1), np.float32)}
    feeds = {name: value for name, value in {**known, **weights}.items() if name in scorer.inputs}
    assert np.abs(scorer.scores(feeds) - plain[here]).max() < 1e-6


def test_the_example_runs_without_pytorch_and_fedpa(made: Small, light: Foundation, tmp_path: Path) -> None:
    device = exported(tmp_path, light, made.dataset)
    user = str(device.user(0))
    example = [sys.executable, "-c", WITHOUT, str(EXAMPLES), str(EXAMPLES / "score_on_device.py")]
    options = ["--user", user, "--rows", str(device.folder / "rows" / f"{user}.csv"), "-k", "1000"]
    done = subprocess.run([*example, str(device.folder), *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    expected = device.run.recommender.recommend(user, 1000)
    assert {*found["items"]} >= {*expected.items}
    scores = dict(zip(found["items"], found["scores"], strict=True))
    assert np.abs([scores[i] - s for i, s in zip(expected.items, expected.scores, strict=True)]).max() < 1e-5
    assert found["scores"] == sorted(found["scores"], reverse=True)
