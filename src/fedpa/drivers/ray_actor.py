"""A node of a run in a process of Ray's."""

from __future__ import annotations

import fcntl
import importlib.metadata
import os
import resource
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedpa.artifacts import read_manifest, sha256
from fedpa.data.dataset import load_dataset
from fedpa.drivers.driver import Plan
from fedpa.errors import ArtifactError, ConfigError
from fedpa.federation.node import Node
from fedpa.federation.order import Base, Order, Report, Sums
from fedpa.federation.tally import Tally
from fedpa.own_code import is_own_code

__all__ = ["Seal", "ShardActor", "convert_order", "convert_report", "facts_of", "to_array", "to_tensor"]

_LOCK, _LOCK_SECONDS, _LOCK_PAUSE = ".lock", 60.0, 0.05


def to_array(tensor: torch.Tensor) -> Any:
    """A tensor as Ray puts it into its store: without a copy for whoever reads it there."""
    return tensor.detach().cpu().contiguous().numpy()


def to_tensor(array: Any) -> torch.Tensor:
    """The tensor again, with memory of its own: the store's may not be written to."""
    return torch.from_numpy(np.array(array))


def convert_order(order: Order, convert: Callable[[Any], Any]) -> Order:
    """An order with every tensor, or array, converted."""
    downlink = tuple(replace(one, values=convert(one.values)) for one in order.downlink)
    return replace(order, state=tuple(map(convert, order.state)), downlink=downlink)


def convert_report(report: Report, convert: Callable[[Any], Any]) -> Report:
    """A report with every tensor, or array, converted."""
    upload = report.upload
    seen = tuple(replace(one, values=convert(one.values)) for one in upload.seen)
    sums, weights = [*map(convert, upload.sums)], [*map(convert, upload.weights)]
    return replace(report, upload=replace(upload, sums=sums, weights=weights, seen=seen))


def facts_of(plan: Plan) -> dict[str, str]:
    """What must be the same wherever a node of a run computes: versions, data, foundation, code of one's own."""
    found = {name: importlib.metadata.version(name) for name in ("fedpa", "torch")}
    found["data set"] = load_dataset(Path(plan.dataset)).hash
    for name, text in (("method", plan.method), ("foundation", plan.foundation)):
        if text is not None and is_own_code(text):
            found[name] = sha256(Path(text.rpartition(":")[0]))
    if plan.foundation is not None and "foundation" not in found:
        found["foundation"] = read_manifest(Path(plan.foundation), "foundation")["hash"]
    return found


@dataclass(frozen=True)
class Seal:
    """What an actor compares before it begins.

    Attributes
    ----------
    file : str
        A file in the run's folder.
    content : str
        What the driver wrote into it.
    facts : dict
        See `facts_of`.
    """

    file: str
    content: str
    facts: dict[str, str]

    def check(self, plan: Plan) -> None:
        """Refuse a machine that does not see the run's folder, or has other data.

        Raises
        ------
        ConfigError
        """
        host = socket.gethostname()
        try:
            found = Path(self.file).read_text(encoding="utf-8")
        except OSError:
            found = ""
        if found != self.content:
            raise ConfigError(
                f"{Path(self.file).parent}: is not the same folder on {host} as where the run was started",
                "put the run's folder on storage that all nodes of the Ray cluster share, under one name",
            )
        try:
            facts = facts_of(plan)
        except (ArtifactError, OSError) as error:
            raise ConfigError(f"on {host}: {error}", "put data set and foundation where all nodes see them") from error
        if wrong := [name for name, value in self.facts.items() if facts.get(name) != value]:
            raise ConfigError(
                f"on {host}: its {wrong[0]} is not that of the machine where the run was started "
                f"({facts.get(wrong[0])}, expected {self.facts[wrong[0]]})",
                "install the same versions on all nodes, and give them the same files",
            )


class ShardActor:
    """Wraps a node, which is made at the first call; one call at a time.

    Parameters
    ----------
    plan : Plan
    index : int
        The node's number.
    threads : int
        How many it computes on.
    seal : Seal
    """

    def __init__(self, plan: Plan, index: int, threads: int, seal: Seal) -> None:
        self._plan, self._index, self._seal = plan, index, seal
        self._node: Node | None = None
        self._held: list[int] | None = None
        self._lock, self._seconds = -1, 0.0
        torch.set_num_threads(threads)

    def facts(self) -> dict[str, Any]:
        """Where it runs, its peak memory in bytes, and how many seconds its last scoring or training took."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        return {"pid": os.getpid(), "host": socket.gethostname(), "peak_bytes": peak, "seconds": self._seconds}

    def tally(self) -> Tally | None:
        """The node's item counts."""
        return self._opened().tally()

    def start(self, total: Tally | None) -> list[int]:
        """Make the shard, unless it is there; returns the generations that it could start from."""
        if self._held is None:
            self._held = self._opened().start(total)
        return self._held

    def evaluate(self, total: Tally | None, order: Order, base: Base) -> Sums:
        """Score; an actor that was started anew is made ready first."""
        self.start(total)
        begin = time.perf_counter()
        sums = self._opened().evaluate(convert_order(order, to_tensor), base)
        self._seconds = time.perf_counter() - begin
        return sums

    def train(self, total: Tally | None, order: Order, base: Base) -> Report:
        """Train, likewise."""
        self.start(total)
        begin = time.perf_counter()
        report = self._opened().train(convert_order(order, to_tensor), base)
        self._seconds = time.perf_counter() - begin
        return convert_report(report, to_array)

    def _opened(self) -> Node:
        if self._node is None:
            self._seal.check(self._plan)
            self._claim()
            self._node = self._plan.node(self._index)
        return self._node

    def _claim(self) -> None:
        """Be the only process that writes to the node's folder: one that was given up may not be gone yet."""
        folder = self._plan.node_folder(self._index)
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        end = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > end:
                    raise ArtifactError(
                        f"{folder}: another process still writes to it", "end it, then go on with --resume"
                    ) from None
                time.sleep(_LOCK_PAUSE)
            else:
                return
