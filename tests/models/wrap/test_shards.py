"""How users are divided into shards, chunks and threads changes no byte of a wrapped module's result either."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fedpa
from arrays import Array, ArrayDataset, ToyEngine, toy, toy_engine
from fedpa.models.wrap.wrapped import Wrapped
from models.wrap.modules import DCN, TextRanker, made
from models.wrap.test_adapted import method

USERS = 23
CASES: dict[str, Any] = {
    "transformer": (TextRanker, {"targets": ["layer.2.*.query", "layer.2.*.value", "score"], "train": ["head"]}, {}),
    "dcn": (DCN, {"targets": ["cross.*", "deep.*"], "train": ["head"]}, {}),
    "two labels, user by user": (
        DCN,
        {"targets": ["cross.*"], "labels": ("label", "other"), "engine": "loop"},
        {"labels": 2},
    ),
}


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def uneven() -> ArrayDataset:
    counts = np.random.default_rng(0).integers(1, 30, USERS)
    counts[:4] = [1, 50, 50, 2]
    return toy(USERS, counts, context=True, features="causal")


def wrapped(case: str, on: ArrayDataset, **values: Any) -> Wrapped:
    module, settings, shape = CASES[case]
    return fedpa.wrap(made(module, on, **shape), **settings, **values)


def result(folder: Path, case: str, *, divided: list[Array] | None = None, rounds: int = 2, **limits: Any) -> Any:
    """Everything that a division could change, as bytes."""
    on = uneven()
    found = wrapped(case, on)
    chosen = method(found, batch_size=16, participation=0.7, weighting="rows", item_bias=True, rank=2, item_counts=0)
    engine = toy_engine(folder, on, chosen, foundation=found, divided=divided, **limits)
    uploads = [engine.round(number) for number in range(rounds)]
    return {
        "sums": [[t.numpy().tobytes() for t in (*upload.sums, *upload.weights)] for upload in uploads],
        "loss": [upload.loss for upload in uploads],
        "server": [table.numpy().tobytes() for table in engine.server.state],
        "personal": engine.personal().tobytes(),
        "scores": engine.scores().tobytes(),
    }, engine


def differing(found: Any, expected: Any) -> list[str]:
    return [name for name in expected if found[name] != expected[name]]


@pytest.fixture(scope="module", params=CASES)
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any, ToyEngine]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    found, engine = result(tmp_path_factory.mktemp("whole"), request.param)
    torch.set_num_threads(before)
    return request.param, found, engine


def test_it_trains(whole: tuple[str, Any, ToyEngine]) -> None:
    _, found, engine = whole
    assert all(loss > 0 for loss in found["loss"])
    assert engine.personal().any(0).mean() > 0.5


@pytest.mark.parametrize("threads_", [1, 2])
@pytest.mark.parametrize("shards", [2, 7])
def test_shards_change_no_byte(tmp_path: Path, whole: tuple[str, Any, ToyEngine], shards: int, threads_: int) -> None:
    case, expected, _ = whole
    torch.set_num_threads(threads_)
    divided = [np.arange(n, USERS, shards) for n in range(shards)]
    assert differing(result(tmp_path, case, divided=divided)[0], expected) == []


@pytest.mark.parametrize("limits", [{"users_per_chunk": 1}, {"users_per_chunk": 5}, {"rows_per_chunk": 40}])
def test_chunks_change_no_byte(tmp_path: Path, whole: tuple[str, Any, ToyEngine], limits: dict[str, Any]) -> None:
    case, expected, _ = whole
    assert differing(result(tmp_path, case, **limits)[0], expected) == []
