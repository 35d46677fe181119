"""A run of five rounds that takes a tenth of a second, and how a person goes on with it when it was stopped."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fedpa.adaptation import adapt, resume
from fedpa.data.dataset import Dataset, load_dataset
from fedpa.models.foundation import Foundation, load_foundation
from fedpa.models.pretrain import pretrain
from fedpa.run import Run
from fedpa.unfinished import room_of
from logged import logged, many

ROUNDS, BEST = 5, 2
USERS, PRIVATE, ITEMS, ROWS = 14, range(6, 14), 5, 160
# Shared, personal and moments of both optimisers; not everybody takes part; the best round is neither of the last two.
SETTINGS: dict[str, Any] = {
    "method": "biases",
    "rounds": ROUNDS,
    "patience": 0,
    "item_counts": 0,
    "lr": 0.1,
    "participation": 0.7,
    "keep_optimizer": True,
    "server_optimizer": "adam",
}


@dataclass(frozen=True)
class World:
    """A data set of eight private users, and its foundation."""

    folder: Path
    dataset: Dataset
    foundation: Foundation

    @classmethod
    def make(cls, folder: Path) -> World:
        """Write both into a folder."""
        dataset = logged(folder, many(USERS, ROWS, ITEMS, seed=1), PRIVATE, items=ITEMS)
        plain: dict[str, Any] = {"reader": "none", "item_embedding": False, "embedding": 2}
        return cls(folder, dataset, pretrain(dataset, out=folder / "foundation", epochs=1, **plain))

    @classmethod
    def open(cls, folder: Path) -> World:
        """Read what `make` wrote."""
        return cls(folder, load_dataset(folder / "dataset"), load_foundation(folder / "foundation"))

    def adapt(self, out: Path, **changed: Any) -> Run:
        """The run, from its begin."""
        where = self.folder / "foundation"
        with one_thread():
            return adapt(self.foundation, self.dataset, out=out, foundation_path=where, **(SETTINGS | changed))

    def go_on(self, out: Path, **changed: Any) -> Run:
        """What a person does who does not know how far the run had come."""
        if out.exists():
            return Run(out, foundation=self.foundation, dataset=self.dataset)
        if (room_of(out) / "config.yaml").exists():
            with one_thread():
                return resume(out, foundation=self.foundation, dataset=self.dataset)
        return self.adapt(out, **changed)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread, so that the order of calls is the same in every run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def essence(run: Path) -> dict[str, str]:
    """By file of a finished run what must not depend on crashes: all bytes, but for seconds; also names of files."""
    found = {}
    for path in sorted(run.rglob("*")):
        name = str(path.relative_to(run))
        if path.is_dir():
            continue
        if path.name == "generation.json":
            about = json.loads(path.read_bytes().rpartition(b"\n")[0])
            noted = about["about"]
            noted["lines"] = _without_seconds(noted.get("lines", []))
            noted["pending"] = _without_seconds([noted.get("pending", {})])
            found[name] = json.dumps(about, sort_keys=True)
        elif path.name == "metrics.jsonl":
            found[name] = json.dumps(_without_seconds(map(json.loads, path.read_text().splitlines())))
        elif path.name == "summary.json":
            found[name] = json.dumps(_without_seconds([json.loads(path.read_text())]))
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def _without_seconds(lines: Any) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if not key.startswith("seconds")} for line in lines]
