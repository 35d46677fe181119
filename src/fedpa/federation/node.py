"""A node: one shard of private users with their rows, and all that their devices keep, on one disk."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from fedpa.data.dataset import PRIVATE, Dataset, Part
from fedpa.errors import ArtifactError
from fedpa.evaluation.sums import ClickSums
from fedpa.federation.order import Base, Order, Report, Sums
from fedpa.federation.rows import ShardRows
from fedpa.federation.rule import AdaptedModel
from fedpa.federation.shard import Shard
from fedpa.federation.tally import Tally
from fedpa.models.foundation import Foundation
from fedpa.models.wrap.wrapped import limits_of

if TYPE_CHECKING:
    from fedpa.methods import FederatedMethod

__all__ = ["SPLITS", "Node", "divided", "split_sums"]

SPLITS = {"train": Part.TRAIN, "val": Part.VAL, "test": Part.TEST}
Ints = npt.NDArray[np.int64]


def divided(dataset: Dataset, shards: int) -> list[Ints]:
    """The private users in so many parts of nearly equal size, each a range in the order of users."""
    return np.array_split(np.flatnonzero(dataset.side == PRIVATE), shards)


def split_sums(rows: ShardRows, scores: npt.NDArray[np.floating]) -> Sums:
    """What is to be said of the scores of a shard's rows [rows]."""
    labels, owner = rows.labels.cpu().numpy(), rows.users[rows.user]
    parts = {name: rows.part == part for name, part in SPLITS.items()}
    return {name: ClickSums.of(owner[here], labels[here], scores[here]) for name, here in parts.items()}


class Node:
    """A shard that a driver can reach, stop and start again.

    Parameters
    ----------
    method : FederatedMethod
    foundation : Foundation or None
    dataset : Dataset
    seed : int
        The run's.
    folder : Path
        Where the generations of what its devices keep are written.
    index : int
        Its number among the nodes.
    users : ndarray, optional
        User numbers of the data set; by default all private users.
    device : torch.device
    model : AdaptedModel, optional
        What ``method.model`` gives, if it is at hand.
    sync : bool
        Whether generations outlive a crash of the machine.
    """

    def __init__(
        self,
        method: FederatedMethod,
        foundation: Foundation | None,
        dataset: Dataset,
        *,
        seed: int,
        folder: Path,
        index: int = 0,
        users: Ints | None = None,
        device: torch.device | None = None,
        model: AdaptedModel | None = None,
        sync: bool = True,
    ) -> None:
        self.method, self.foundation, self.dataset = method, foundation, dataset
        self.seed, self.folder, self.index, self.sync = seed, folder, index, sync
        self.device = device or torch.device("cpu")
        self._model = model
        self._plain = ShardRows.of(dataset, users, dtype=method.settings.torch_dtype, device=self.device)
        self._shard: Shard | None = None

    @property
    def users(self) -> Ints:
        """User numbers of the data set."""
        return self._plain.users

    def tally(self) -> Tally | None:
        """Its users' item counts, which are summed over nodes before the first round; None if the method has none."""
        return self.method.tally(self.dataset, self._plain)

    def rows(self, tally: Tally | None) -> ShardRows:
        """Its users' rows as the method reads them, with everybody's item counts."""
        return self.method.rows(self.foundation, self.dataset, self._plain, tally)

    def start(self, tally: Tally | None) -> list[int]:
        """Make the shard, as `open` does; returns the undamaged generations, all bytes of which are read.

        Raises
        ------
        ArtifactError
            If the folder's generations are those of other users.
        """
        self.open(tally)
        return sorted(self.shard.store.held())

    def open(self, tally: Tally | None) -> None:
        """Make the shard, with everybody's item counts."""
        rows = self.rows(tally)
        model = self._model or self.method.model(self.foundation, self.dataset, self.seed, self.device)
        store = Shard.new_store(model, rows, self.method.settings, self.folder, sync=self.sync)
        limits = limits_of(self.foundation)
        self._shard = Shard(model, rows, self.method.settings, store, seed=self.seed, rule=self.method, **limits)
        store.about = self.about()
        store.begin_with_zeros(self._shard.touched)

    @property
    def shard(self) -> Shard:
        """What does the work, after `start` or `open`."""
        if self._shard is None:
            raise ArtifactError(f"node {self.index}: was not started")
        return self._shard

    def evaluate(self, order: Order, base: Base) -> Sums:
        """Score all rows with the order's state and what the devices had kept by then."""
        shard = self._at(base)
        return split_sums(shard.rows, shard.scores(order.state))

    def train(self, order: Order, base: Base) -> Report:
        """Train the round; what devices keep of it is on the disk when this returns."""
        shard = self._at(base)
        upload = shard.round(order.state, order.number, order.downlink)
        return Report(order.run, order.number, self.index, upload)

    def _at(self, base: Base) -> Shard:
        self.shard.store.keep = frozenset(base.keep)
        self.shard.store.at(base.generation)
        return self.shard

    def about(self) -> dict[str, object]:
        """What is noted with its generations: whose they are."""
        ids = self.dataset.user_ids.gather(self.users)
        return {"node": self.index, "users": hashlib.sha256("\n".join(map(str, ids)).encode()).hexdigest()}
