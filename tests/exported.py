"""Exports with everything that the examples take."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
from safetensors.numpy import load_file, save_file

from fedpa import export
from fedpa.adaptation import adapt
from fedpa.data.dataset import Dataset
from fedpa.models.foundation import Foundation
from fedpa.models.pretrain import pretrain
from fedpa.run import Run
from prepared import Small
from score_on_device import Scorer
from train_on_device import Device

EXAMPLES = Path(__file__).parents[1] / "examples"
LIGHT: dict[str, Any] = {"reader": "light", "item_embedding": True, "half_life": 20.0}
PLAIN: dict[str, Any] = {"reader": "none", "item_embedding": False}


class Exported(NamedTuple):
    """A run and its folder for devices, with their rows."""

    run: Run
    folder: Path

    def user(self, local: int) -> int | str:
        """Id of a private user."""
        found: int | str = self.run.dataset.user_ids[int(self.run.rows.users[local])]
        return found


def foundation_of(made: Small, settings: dict[str, Any]) -> Foundation:
    """A foundation with the inputs that `LIGHT` or `PLAIN` name."""
    return pretrain(made.dataset, epochs=2, lr=0.01, batch_size=256, **settings)


def exported(
    folder: Path, foundation: Foundation, dataset: Dataset, *, users: int | None = 9, **settings: Any
) -> Exported:
    """A run whose adapters are random, and an export of the first users, or of all."""
    run = adapt(foundation, dataset, out=folder / "run", **{"rounds": 0, **settings})
    stirred = np.random.default_rng(0)
    for file in (folder / "run").glob("*.safetensors"):
        with safetensors.safe_open(file, "np") as opened:
            metadata = opened.metadata()
        tensors = load_file(file)
        save_file({n: v + stirred.normal(0, 0.2, v.shape).astype(v.dtype) for n, v in tensors.items()}, file, metadata)
    chosen = None if users is None else run.dataset.user_ids.gather(run.rows.users[:users]).to_list()
    export(run, folder / "devices", users=chosen, rows=True)
    return Exported(run, folder / "devices")


def on_device(device: Exported, local: int) -> dict[Any, float]:
    """The example's scores by item."""
    opened, scorer = Device(device.folder, str(device.user(local))), Scorer(device.folder)
    rows = opened.rows(device.folder / "rows" / f"{device.user(local)}.csv")
    return dict(zip(opened.items["ids"].tolist(), scorer.scores(scorer.feeds(opened, rows)).tolist(), strict=True))


def check_scores(device: Exported, users: int = 9) -> None:
    """Every item that `recommend` scores has the same score on the device."""
    for local in range(users):
        found = device.run.recommender.recommend(device.user(local), 1000)
        scores = on_device(device, local)
        assert len(found.items) > 10
        assert np.abs(np.array([scores[item] for item in found.items]) - np.array(found.scores)).max() < 1e-5
