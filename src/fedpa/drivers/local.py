"""The nodes of a run in this process, one after another."""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping, Sequence

from fedpa.federation.form import Reason
from fedpa.federation.node import Node
from fedpa.federation.order import Base, Order, Report, Sums

__all__ = ["LocalDriver"]


class LocalDriver:
    """Nodes in this process.

    Parameters
    ----------
    nodes : sequence of Node
        One is the fastest: chunks of users run side by side within it.
    """

    apart = False

    def __init__(self, nodes: Sequence[Node]) -> None:
        self._nodes = {node.index: node for node in nodes}

    @property
    def nodes(self) -> Sequence[int]:
        """Numbers of the nodes."""
        return list(self._nodes)

    def start(self) -> dict[int, list[int]]:
        """Sum the item counts and make the shards; returns the generations that each node could start from."""
        tallies = [tally for node in self._nodes.values() if (tally := node.tally()) is not None]
        total = functools.reduce(operator.add, tallies) if tallies else None
        return {index: node.start(total) for index, node in self._nodes.items()}

    def evaluate(self, order: Order, bases: Mapping[int, Base]) -> dict[int, Sums]:
        """Have every node score."""
        return {index: node.evaluate(order, bases[index]) for index, node in self._nodes.items()}

    def train(self, order: Order, bases: Mapping[int, Base]) -> dict[int, Report]:
        """Have every node train."""
        return {index: node.train(order, bases[index]) for index, node in self._nodes.items()}

    def refusals(self) -> list[tuple[int, Reason]]:
        """None: nothing is sent."""
        return []

    def close(self) -> None:
        """Nothing was started."""
