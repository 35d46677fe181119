"""Flower's grid without Flower's processes: the ClientApp is called in this one, and answers can be lost on the way."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytest
from flwr.app import Context, Error, Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedpa.drivers.flower import members, post
from fedpa.drivers.flower.client import app
from fedpa.drivers.flower.letter import of_record, to_record

__all__ = ["CRASHED", "OFFLINE", "Fault", "HereGrid", "Stopped", "hurry"]

CRASHED, OFFLINE = 8, 5
Fault = Callable[[int, str, int], str]
"""Of a node, a kind of letter and how many of the kind it was sent: what becomes of the answer. ``""``: it arrives;
``lost``: it is computed and gone; ``untaken``: it is not computed; ``crashed``, ``offline``: Flower says so; ``stop``:
the server is stopped; ``torn``: it is no letter any more; ``older``: its parts say that they are of round 0."""


def hurry(patch: pytest.MonkeyPatch) -> None:
    """Minutes become moments."""
    patch.setattr(post, "_POLL_SECONDS", 0.0)
    patch.setattr(post, "_LOOK_SECONDS", 0.0)
    patch.setattr(post, "_QUIET_SECONDS", 0.05)
    patch.setattr(post, "_QUIET_TIMES", 0.1)
    patch.setattr(members, "_PAUSE_SECONDS", 0.0)


class Stopped(Exception):  # noqa: N818
    """What `stop` raises in the server."""


def _spoilt(content: RecordDict, fault: str) -> RecordDict:
    if fault == "torn":
        return RecordDict()
    letter = of_record(content)
    parts = tuple(({**header, "round": 0}, arrays) for header, arrays in letter.parts)
    return to_record(dataclasses.replace(letter, parts=parts))


class HereGrid(Grid):
    """A grid over ClientApps in this process.

    Parameters
    ----------
    configs : mapping of int to dict
        By Flower's number of each node its ``--node-config``; may be added to.
    fault : callable

    Attributes
    ----------
    sent : list of (kind, Message)
        All answers that left a node.
    """

    def __init__(
        self, configs: Mapping[int, Mapping[str, object]], fault: Fault = lambda node, kind, count: ""
    ) -> None:
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
        self.configs = dict(configs)
        self.fault = fault
        self.sent: list[tuple[str, Message]] = []
        self.starts = dict.fromkeys(self.configs, 0)
        self._ids = itertools.count()
        self._replies: dict[str, Message] = {}
        self._counts: dict[tuple[int, str], int] = {}

    def get_nodes(self) -> list[NodeInfo]:
        """All nodes."""
        return [
            NodeInfo(node_id=node, public_key=f"key {node}".encode(), name=f"node-{node}", last_activated_at=str(start))
            for node, start in self.starts.items()
            if start >= 0
        ]

    def get_node_ids(self) -> list[int]:
        """Their numbers."""
        return [node.node_id for node in self.get_nodes()]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Have the messages answered at once."""
        found = []
        for message in messages:
            id_ = f"message {next(self._ids)}"
            message.metadata.__dict__["_message_id"] = id_
            self._take(id_, message)
            found.append(id_)
        return found

    def _take(self, id_: str, message: Message) -> None:
        node, kind = message.metadata.dst_node_id, message.metadata.message_type.partition(".")[2]
        count = self._counts[node, kind] = self._counts.get((node, kind), 0) + 1
        fault = self.fault(node, kind, count)
        if fault == "stop":
            raise Stopped
        if fault == "untaken":
            return
        if fault in ("crashed", "offline"):
            code = CRASHED if fault == "crashed" else OFFLINE
            self._replies[id_] = Message(Error(code, "said the grid"), reply_to=message)
            return
        config: dict[str, Any] = {key: str(value) for key, value in self.configs[node].items()}
        context = Context(run_id=1, node_id=node, node_config=config, state=RecordDict(), run_config={}, series_id=1)
        reply = app(message, context)
        if fault in ("torn", "older"):
            reply = Message(_spoilt(reply.content, fault), reply_to=message)
        self.sent.append((kind, reply))
        if fault != "lost":
            self._replies[id_] = reply

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Answers that have arrived, each once."""
        return [self._replies.pop(id_) for id_ in list(message_ids) if id_ in self._replies]

    def set_run(self, run: Run) -> None:
        """Not needed."""

    @property
    def run(self) -> Run:
        """Not needed."""
        raise NotImplementedError

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Not needed."""
        raise NotImplementedError

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Not to be used: it sleeps three seconds between looks."""
        raise NotImplementedError
