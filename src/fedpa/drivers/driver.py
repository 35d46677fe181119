"""What a driver does for the coordinator of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from fedpa.data.dataset import Dataset, load_dataset
from fedpa.device import open_device
from fedpa.errors import ConfigError
from fedpa.federation.form import Reason
from fedpa.federation.node import Node, divided
from fedpa.federation.order import Base, Order, Report, Sums
from fedpa.methods import FederatedMethod, find_method
from fedpa.models.foundation import Foundation
from fedpa.models.wrap.source import open_foundation

__all__ = ["Driver", "Plan"]


class Driver(Protocol):
    """Carries orders to nodes and brings back what they answer. Nodes that are late or dead are absent from answers.

    Attributes
    ----------
    apart : bool
        Whether every node has a disk of its own: one may lose what it kept while the others, and the run, go on.
    """

    apart: bool

    @property
    def nodes(self) -> Sequence[int]:
        """Numbers of the nodes."""

    def start(self) -> dict[int, list[int]]:
        """Start the nodes, with the sum of their item counts; returns the generations that each could start from."""

    def evaluate(self, order: Order, bases: Mapping[int, Base]) -> dict[int, Sums]:
        """Have nodes score their rows with the order's state."""

    def train(self, order: Order, bases: Mapping[int, Base]) -> dict[int, Report]:
        """Have nodes train the order's round; the same order was given to `evaluate` before."""

    def refusals(self) -> list[tuple[int, Reason]]:
        """Nodes whose answers could not be read since this was last asked, and why, one for each such answer."""

    def close(self) -> None:
        """End whatever `start` began."""


@dataclass(frozen=True)
class Plan:
    """All that another process needs to make a node of a run.

    Attributes
    ----------
    method : str
        Name, or ``my_file.py:MyMethod``.
    settings : mapping
    dataset : str
        Its folder.
    foundation : str or None
        Its folder, or ``my_file.py:build``.
    seed : int
    shards : int
    folder : str
        Of the nodes' generations: ``node-0`` and so on.
    device : str
    sync : bool
        Whether they outlive a crash of the machine.
    """

    method: str
    settings: Mapping[str, Any]
    dataset: str
    foundation: str | None
    seed: int
    shards: int
    folder: str
    device: str = "cpu"
    sync: bool = True

    def node(
        self,
        index: int,
        *,
        method: FederatedMethod | None = None,
        dataset: Dataset | None = None,
        foundation: Foundation | None = None,
        **known: Any,
    ) -> Node:
        """One of the nodes; what is at hand already is given, the rest is loaded.

        A model that is given goes with the method that made it.

        Raises
        ------
        ConfigError
            If the method does not run on nodes.
        """
        if method is None:
            found = find_method(self.method)
            if not issubclass(found, FederatedMethod):
                raise ConfigError(f"method {found.name}: has no federation, so there is nothing to divide among nodes")
            method = found(found.settings_type.checked(self.settings, f"method {found.name}"))
        if foundation is None and self.foundation is not None:
            foundation = open_foundation(self.foundation)
        data = dataset or load_dataset(Path(self.dataset))
        return Node(
            method,
            foundation,
            data,
            seed=self.seed,
            folder=self.node_folder(index),
            index=index,
            users=divided(data, self.shards)[index],
            device=open_device(self.device),
            sync=self.sync,
            **known,
        )

    def node_folder(self, index: int) -> Path:
        """Where a node's generations are."""
        return Path(self.folder) / f"node-{index}"

    @property
    def torch_device(self) -> torch.device:
        """Where nodes compute."""
        return open_device(self.device)
