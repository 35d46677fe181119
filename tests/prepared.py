"""A small prepared data set with its foundation, made once per test session."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pytest

from fedpa.adaptation import adapt
from fedpa.data.dataset import Dataset
from fedpa.data.prepare import prepare
from fedpa.data.sources import open_source
from fedpa.data.synthetic import synthesise
from fedpa.models.foundation import Foundation
from fedpa.models.pretrain import pretrain
from fedpa.run import Run

USERS, ITEMS = 300, 100
QUICK: dict[str, Any] = {"rounds": 3, "patience": 0, "lr": 0.1, "item_counts": 0}


class Small(NamedTuple):
    """300 users, a tenth of them cold, and 100 items."""

    dataset: Dataset
    foundation: Foundation
    folder: Path

    @property
    def foundation_path(self) -> Path:
        """Where the foundation was saved."""
        return self.folder / "foundation"


def small(factory: pytest.TempPathFactory, features: Literal["causal", "reference"] = "causal", seed: int = 0) -> Small:
    """The same data set and foundation for every test of a session."""
    return _small(factory.getbasetemp() / f"small-{features}-{seed}", features, seed)


@cache
def _small(folder: Path, features: Literal["causal", "reference"], seed: int) -> Small:
    synthesise(folder / "raw", users=USERS, items=ITEMS, rows_per_user=25, seed=seed)
    source = open_source("kuairand-pure", folder / "raw")
    dataset = prepare(source, folder / "dataset", features=features, cold_users=0.2)
    # The published backbone: readers of pasts have tests of their own.
    plain: dict[str, Any] = {"reader": "none", "item_embedding": False, "embedding": 8, "weight_decay": 0.0}
    foundation = pretrain(dataset, out=folder / "foundation", epochs=4, lr=0.01, batch_size=256, **plain)
    return Small(dataset, foundation, folder)


def reading(factory: pytest.TempPathFactory) -> Foundation:
    """A foundation for the same data set that reads users' pasts, lightly."""
    return _reading(small(factory).folder)


@cache
def _reading(folder: Path) -> Foundation:
    return pretrain(_small(folder, "causal", 0).dataset, epochs=3, lr=0.01, batch_size=256)


def quick_run(factory: pytest.TempPathFactory, features: Literal["causal", "reference"] = "causal") -> Run:
    """A finished run that tests may read; those that change it make their own."""
    return _run(small(factory, features).folder, features)


@cache
def _run(folder: Path, features: Literal["causal", "reference"]) -> Run:
    made = _small(folder, features, 0)
    run = adapt(made.foundation, made.dataset, out=folder / "run", foundation_path=made.foundation_path, **QUICK)
    assert run.summary["best_round"] > 0, "users of these tests are to have trained"
    return run
