"""A divided data set, what a local run makes of it, and how Flower's nodes are to be started for the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import safetensors.numpy

from drivers.flower_net import Net
from fedpa.adaptation import adapt
from fedpa.data.shard import SERVER, node_folder, shard
from fedpa.unfinished import read_config
from prepared import Small, small

__all__ = ["SETTINGS", "World", "world"]

SETTINGS: dict[str, Any] = {"rounds": 2, "patience": 0, "lr": 0.1, "item_counts": 5, "participation": 0.6}
"""Everything that could make nodes differ: counts of all nodes, a draw of participants, personal parameters."""


@dataclass(frozen=True)
class World:
    """Shards of a small data set.

    Attributes
    ----------
    made : Small
    folder : Path
        For runs and stores.
    shards : dict of str to Path
    """

    made: Small
    folder: Path
    shards: dict[str, Path]

    @property
    def nodes(self) -> int:
        """How many there are."""
        return len(self.shards) - 1

    def local(self, **settings: Any) -> Path:
        """What one process makes of the whole data set."""
        out = self.folder / f"local-{abs(hash(tuple(sorted(settings.items()))))}"
        if not out.exists():
            path = self.made.foundation_path
            adapt(self.made.foundation, self.made.dataset, out=out, foundation_path=path, **SETTINGS | settings)
        return out

    def config(self, node: int) -> dict[str, object]:
        """A node's ``--node-config``."""
        return {
            "dataset": self.shards[node_folder(node)],
            "foundation": self.made.foundation_path,
            "store": self.folder / f"store-{node}",
        }

    def start(self, net: Net, nodes: Sequence[int]) -> None:
        """Start some nodes."""
        for node in nodes:
            net.node(node, self.config(node))

    def app(self, net: Net, out: Path, **options: Any) -> Path:
        """What ``flwr run`` takes, for the run that `local` makes; ``set`` are settings that differ."""
        settings = SETTINGS | options.pop("set", {})
        return net.app(
            dataset=str(self.shards[SERVER]),
            foundation=str(self.made.foundation_path),
            out=str(out),
            settings=" ".join(f"{key}={value}" for key, value in settings.items()),
            **{"min_nodes": self.nodes, **options},
        )

    def personal(self, net: Net, run: Path) -> npt.NDArray[np.floating]:
        """What the devices of all nodes kept of a finished run, in the order of the whole data set."""
        id_ = hashlib.sha256(json.dumps(read_config(run), sort_keys=True).encode()).hexdigest()[:16]
        paths = [self.folder / f"store-{node}" / id_ / "personal.safetensors" for node in range(self.nodes)]
        net.wait(lambda: all(path.exists() for path in paths), 60, f"runs of the nodes of {run}")
        return np.concatenate([safetensors.numpy.load_file(path)["personal"] for path in paths])

    def same(self, net: Net, run: Path, local: Path) -> None:
        """Fail unless both runs are equal to the bit, shared and group parameters and what devices keep."""
        assert (run / "shared.safetensors").read_bytes() == (local / "shared.safetensors").read_bytes()
        kept = safetensors.numpy.load_file(local / "personal.safetensors")["personal"]
        assert np.abs(kept).max() > 0, "users are to have trained"
        assert np.array_equal(self.personal(net, run), kept)


def world(factory: pytest.TempPathFactory, nodes: int) -> World:
    """The small data set in so many shards."""
    made = small(factory)
    folder = factory.mktemp(f"flower-{nodes}-")
    return World(made, folder, shard(made.dataset, folder / "shards", shards=nodes))
