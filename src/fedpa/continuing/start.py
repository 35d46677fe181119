"""What a run begins with that goes on from another one."""

from __future__ import annotations

import functools
import logging
import operator
from collections.abc import Callable
from typing import Any, cast

import numpy as np
from torch import Tensor

from fedpa.adaptation import Job
from fedpa.continuing.carried import Carried
from fedpa.continuing.correspondence import Correspondence
from fedpa.continuing.devices import Kept, carry_devices
from fedpa.continuing.state import carry_server
from fedpa.data.dataset import PRIVATE
from fedpa.device import open_device
from fedpa.drivers.local import LocalDriver
from fedpa.errors import ArtifactError
from fedpa.federation.coordinator import Coordinator, saved_round
from fedpa.federation.device import DeviceStore
from fedpa.federation.node import Node
from fedpa.federation.rows import ShardRows
from fedpa.federation.rule import AdaptedModel
from fedpa.federation.server import Server
from fedpa.federation.shard import Shard
from fedpa.federation.touched import TouchedRows
from fedpa.methods import FederatedMethod
from fedpa.run import Run
from fedpa.settings import Settings
from fedpa.unfinished import write_config

__all__ = ["Start"]

_log = logging.getLogger(__name__)


class Start:
    """What a run begins with that goes on from another one.

    Parameters
    ----------
    run : Run
        The earlier one.
    job : Job
        The new one.
    first : int
        The round that the start is noted as.
    migrate : bool
        Whether parameters that do not fit may begin anew.

    Raises
    ------
    ArtifactError
        If some do not fit and may not.
    """

    def __init__(self, run: Run, job: Job, first: int, *, migrate: bool) -> None:
        self.run, self.job, self.first = run, job, first
        self.before, self.method = cast(FederatedMethod, run.method), cast(FederatedMethod, job.method)
        self.model = self.method.model(job.foundation, job.dataset, job.config["seed"], open_device("cpu"))
        self.where = Correspondence.of(run.dataset, job.dataset)
        hashes = [None if one is None else one.hash for one in (run.foundation, job.foundation)]
        same = hashes[0] == hashes[1]
        self.carried = Carried(run.model.layout, self.model.layout, self.where, same_foundation=same)
        if self.carried.dropped and not migrate:
            one = self.carried.dropped[0]
            raise ArtifactError(
                f"{run.path}: {len(self.carried.dropped)} of its parameters do not fit today's, for instance "
                f"{one['name']}: {one['why']} (was {one['was']}, now {one['now']})",
                "leave the settings as they were, or add --migrate to take over what still fits",
            )

    def write(self) -> None:
        """Fill the folder of the unfinished run: what devices keep, the server's state and, last, what the run is."""
        config = self.job.config
        server = self.method.server(self.model.layout)
        carry_server(self._server(), server, self.carried)
        known: dict[str, Any] = {"method": self.method, "model": self.model}
        known |= {"dataset": self.job.dataset, "foundation": self.job.foundation}
        nodes = [self.job.plan.node(index, **known) for index in range(self.job.plan.shards)]
        with_state = self._devices(nodes, server.state)
        facts = self.where.facts
        config["continues"] |= facts | {
            "users": facts["users"] | {"with_state": with_state},
            "dropped": self.carried.dropped,
            "began": self.carried.began,
        }
        for one in self.carried.dropped:
            _log.warning("%s %s: was %s, now %s; it begins anew", one["name"], one["why"], one["was"], one["now"])
        coordinator = Coordinator(
            server,
            LocalDriver(nodes),
            self.method.settings,
            self.job.room,
            run=self.job.run_id,
            keep_rounds=config["engine"]["keep_rounds"],
            sync=self.job.sync,
        )
        coordinator.begin_at(self.first)
        write_config(self.job.room, config)

    def _server(self) -> Server:
        """The run's server after its best round; with what its optimiser keeps, if that is there still."""
        server = self.run.server
        try:
            _, saved = saved_round(self.run.path, self.run.summary["best_round"])
        except ArtifactError as error:
            if type(server) is not Server or self.before.settings.server_optimizer != "mean":
                _log.warning("%s; what the server keeps beside its state begins anew", error.message)
        else:
            server.restore(saved)
        return server

    def _devices(self, nodes: list[Node], state: list[Tensor]) -> int:
        """Write every node's generation; returns how many users have something."""
        layout, settings = self.model.layout, self.method.settings
        before = self._before()
        tallies = [tally for node in nodes if (tally := node.tally()) is not None]
        tally = functools.reduce(operator.add, tallies) if tallies else None
        begin, some = 0, 0
        for node in nodes:
            touched = _touched(self.model, settings, functools.partial(node.rows, tally))
            store = DeviceStore.create(node.folder, layout, touched, len(node.users), settings, sync=node.sync)
            store.about = node.about()
            places = self.where.private[begin : begin + len(node.users)]
            today = Kept(layout, settings, store, touched)
            some += carry_devices(before, today, self.carried, places, state, self.first)
            begin += len(node.users)
        return some

    def _before(self) -> Kept:
        """What devices kept of the run's best round."""
        layout, settings = self.run.model.layout, self.before.settings
        touched = _touched(self.run.model, settings, lambda: self.run.rows)
        users = int(np.count_nonzero(self.run.dataset.side == PRIVATE))
        return Kept(layout, settings, DeviceStore.open(self.run.path, layout, touched, users, settings), touched)


def _touched(model: AdaptedModel, settings: Settings, rows: Callable[[], ShardRows]) -> dict[str, TouchedRows]:
    """Rows that users touch of the tables of which devices keep rows; without such tables no row is read."""
    kept = DeviceStore.table_columns(model.layout, settings)
    return Shard.touched_rows(model, rows()) if kept else {}
