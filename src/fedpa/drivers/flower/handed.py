"""What a node's devices begin with in a run that goes on from an earlier one: what they kept of it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from fedpa.continuing.handover import Handover
from fedpa.drivers.flower.desk import Desk, Unfit
from fedpa.federation.device import node_generations
from fedpa.federation.form import Message, Refused
from fedpa.federation.node import Node
from fedpa.federation.tally import Tally
from fedpa.federation.wire import unpack_order
from fedpa.run import load_run
from fedpa.unfinished import is_begun, read_config

__all__ = ["take_over"]

_log = logging.getLogger(__name__)


def take_over(
    desk: Desk, run: str, node: Node, continues: Mapping[str, Any], begin: Message | None, tally: Tally | None
) -> dict[str, Any]:
    """Write generation 0 of a node that has none: known users have what they kept, new ones zeros.

    Parameters
    ----------
    desk : Desk
    run : str
        Id of the new run.
    node : Node
        Of it.
    continues : mapping
        What the server says of the earlier run: its ``id``, and whether to ``migrate``.
    begin : Message or None
        The order with the server's state at the start.
    tally : Tally or None
        Everybody's item counts.

    Returns
    -------
    dict
        What became of the node's users; empty if it was no part of the earlier run. A node that has generations began
        before, and what was noted then is returned.

    Raises
    ------
    Unfit
        If the earlier run was not finished on this node.
    Refused
        If the server's message is not of its form.
    ArtifactError
        If the earlier run, its data set or its foundation are not here any more, or do not fit.
    """
    begun = bool(node_generations(node.folder).numbers())
    if begun and is_begun(desk.target(run)):
        return dict(read_config(desk.room(run)).get("continues", {}))
    id_, migrate = continues.get("id"), continues.get("migrate")
    if begin is None or not isinstance(id_, str) or not isinstance(migrate, bool):
        raise Refused("header", "a run that goes on from an earlier one, without what is needed for that")
    earlier = desk.target(id_)
    if not earlier.is_dir():
        if desk.room(id_).is_dir():
            raise Unfit(
                f"run {id_}, which this one goes on from, was not finished on this node",
                f"remove {desk.room(id_)} to begin with users who keep nothing",
            )
        _log.warning("run %s, which this one goes on from, is not here: users begin as new ones", id_)
        return {}
    handover = Handover(load_run(earlier), node.method, node.dataset, node.foundation, migrate=migrate)
    facts = handover.facts()
    if not begun:
        order, _ = unpack_order(handover.model.layout, node.method.settings, *begin)
        some = handover.devices(node, lambda: tally, handover.where.private, order.state, 0)
        _log.info("%d of %d users go on with what their devices kept", some, len(node.users))
    return facts
