"""The folder of a run that goes on from another one, as it is before the first of the new rounds."""

from __future__ import annotations

import functools
import operator
from typing import Any, cast

from fedpa.adaptation import Job
from fedpa.continuing.handover import Handover
from fedpa.drivers.local import LocalDriver
from fedpa.federation.coordinator import Coordinator
from fedpa.federation.node import Node
from fedpa.federation.server import Server
from fedpa.federation.tally import Tally
from fedpa.methods import FederatedMethod
from fedpa.unfinished import write_config

__all__ = ["write_start", "write_start_of_server"]


def write_start(job: Job, handover: Handover) -> None:
    """Fill the folder of a run whose nodes share its disk: what devices keep, the server's state, what the run is."""
    known: dict[str, Any] = {"method": job.method, "model": handover.model}
    known |= {"dataset": job.dataset, "foundation": job.foundation}
    nodes = [job.plan.node(index, **known) for index in range(job.plan.shards)]
    server = handover.server()

    @functools.cache
    def tally() -> Tally | None:
        tallies = [tally for node in nodes if (tally := node.tally()) is not None]
        return functools.reduce(operator.add, tallies) if tallies else None

    begin, some = 0, 0
    for node in nodes:
        places = handover.where.private[begin : begin + len(node.users)]
        some += handover.devices(node, tally, places, server.state, job.config["continues"]["first_round"])
        begin += len(node.users)
    facts = handover.facts()
    job.config["continues"] |= {**facts, "users": {**facts["users"], "with_state": some}}
    write_start_of_server(job, server, nodes)


def write_start_of_server(job: Job, server: Server, nodes: list[Node]) -> None:
    """Write the server's state as that of the round that the run begins with and, last, what the run is.

    Parameters
    ----------
    job : Job
        Its config is complete.
    server : Server
    nodes : list of Node
        Those that hold a generation of that round; others begin with their generation 0.
    """
    Coordinator(
        server,
        LocalDriver(nodes),
        cast(FederatedMethod, job.method).settings,
        job.room,
        run=job.run_id,
        keep_rounds=job.config["engine"]["keep_rounds"],
        sync=job.sync,
    ).begin_at(job.config["continues"]["first_round"])
    write_config(job.room, job.config, sync=job.sync)
