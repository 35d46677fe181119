"""What a run hands over to one that goes on from it, wherever its server and its nodes are."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
from torch import Tensor

from fedpa.continuing.carried import Carried
from fedpa.continuing.correspondence import Correspondence, Ints
from fedpa.continuing.devices import Kept, carry_devices
from fedpa.continuing.state import carry_server
from fedpa.data.dataset import PRIVATE, Dataset
from fedpa.device import open_device
from fedpa.errors import ArtifactError
from fedpa.federation.coordinator import saved_round
from fedpa.federation.device import DeviceStore
from fedpa.federation.node import Node
from fedpa.federation.rows import ShardRows
from fedpa.federation.rule import AdaptedModel
from fedpa.federation.server import Server
from fedpa.federation.shard import Shard
from fedpa.federation.tally import Tally
from fedpa.federation.touched import TouchedRows
from fedpa.methods import FederatedMethod
from fedpa.models.foundation import Foundation
from fedpa.run import Run
from fedpa.settings import Settings

__all__ = ["Handover"]

_log = logging.getLogger(__name__)


class Handover:
    """What a run hands over: to the new server what the old one had learnt, to users what their devices kept.

    Parameters
    ----------
    run : Run
        The earlier one.
    method : FederatedMethod
        Of the new one; its seed is that of the earlier one.
    dataset : Dataset
    foundation : Foundation or None
    migrate : bool
        Whether parameters that do not fit may begin anew.

    Attributes
    ----------
    model : AdaptedModel
        Of the new run.
    where : Correspondence
    carried : Carried

    Raises
    ------
    DataError
        If ids are of another type.
    ArtifactError
        If some parameters do not fit and may not begin anew.
    """

    def __init__(
        self,
        run: Run,
        method: FederatedMethod,
        dataset: Dataset,
        foundation: Foundation | None,
        *,
        migrate: bool,
    ) -> None:
        self._run, self._before, self._method = run, cast(FederatedMethod, run.method), method
        self.model = method.model(foundation, dataset, run.config["seed"], open_device("cpu"))
        self.where = Correspondence.of(run.dataset, dataset)
        hashes = [None if one is None else one.hash for one in (run.foundation, foundation)]
        same = hashes[0] == hashes[1]
        self.carried = Carried(run.model.layout, self.model.layout, self.where, same_foundation=same)
        if self.carried.dropped and not migrate:
            one = self.carried.dropped[0]
            raise ArtifactError(
                f"{run.path}: {len(self.carried.dropped)} of its parameters do not fit today's, for instance "
                f"{one['name']}: {one['why']} (was {one['was']}, now {one['now']})",
                "leave the settings as they were, or add --migrate to take over what still fits",
            )

    def facts(self) -> dict[str, Any]:
        """What became of users, items and parameters; of the latter, what begins anew is logged."""
        for one in self.carried.dropped:
            _log.warning("%s %s: was %s, now %s; it begins anew", one["name"], one["why"], one["was"], one["now"])
        return {**self.where.facts, "dropped": self.carried.dropped, "began": self.carried.began}

    def server(self) -> Server:
        """The new run's server, with the state of the earlier one's best round."""
        server = self._method.server(self.model.layout)
        carry_server(self._best(), server, self.carried)
        return server

    def devices(
        self, node: Node, tally: Callable[[], Tally | None], places: Ints, state: Sequence[Tensor], number: int
    ) -> int:
        """Write what a node's devices begin with.

        Parameters
        ----------
        node : Node
            Of the new run, which has written nothing yet.
        tally : callable
            Gives everybody's item counts of the new run.
        places : ndarray of int64, shape ``[users]``
            For every user of the node its place among the earlier run's private users, -1 for a new one.
        state : sequence of Tensor
            Of the new server at the start.
        number : int
            Of the generation to write.

        Returns
        -------
        int
            How many users have something.
        """
        layout, settings = self.model.layout, self._method.settings
        touched = _touched(self.model, settings, lambda: node.rows(tally()))
        store = DeviceStore.create(node.folder, layout, touched, len(node.users), settings, sync=node.sync)
        store.about = node.about()
        return carry_devices(self._kept, Kept(layout, settings, store, touched), self.carried, places, state, number)

    def _best(self) -> Server:
        """The run's server after its best round; with what its optimiser keeps, if that is there still."""
        run, server = self._run, self._run.server
        try:
            _, saved = saved_round(run.path, run.summary["best_round"])
        except ArtifactError as error:
            if type(server) is not Server or self._before.settings.server_optimizer != "mean":
                _log.warning("%s; what the server keeps beside its state begins anew", error.message)
        else:
            server.restore(saved)
        return server

    @functools.cached_property
    def _kept(self) -> Kept:
        """What devices kept of the run's best round."""
        run, settings = self._run, self._before.settings
        touched = _touched(run.model, settings, lambda: run.rows)
        users = int(np.count_nonzero(run.dataset.side == PRIVATE))
        store = DeviceStore.open(run.path, run.model.layout, touched, users, settings)
        return Kept(run.model.layout, settings, store, touched)


def _touched(model: AdaptedModel, settings: Settings, rows: Callable[[], ShardRows]) -> dict[str, TouchedRows]:
    """Rows that users touch of the tables of which devices keep rows; without such tables no row is read."""
    kept = DeviceStore.table_columns(model.layout, settings)
    return Shard.touched_rows(model, rows()) if kept else {}
