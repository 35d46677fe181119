"""The nodes of a run on Ray: one actor per shard, whose state stays with it between rounds.

The state that the server sends is put into Ray's object store once per round, from where it goes once to each machine,
however many actors read it there. An actor that dies is started anew, on any machine, from the generation of its last
round that was counted; the round goes on and has the same bytes. One that answers too late is left out of the round,
and asked again as soon as it is free.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import operator
import secrets
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fedpa.drivers.driver import Plan
from fedpa.drivers.ray_actor import Seal, ShardActor, convert_order, convert_report, facts_of, to_array, to_tensor
from fedpa.drivers.ray_cluster import Cluster, missing
from fedpa.durable import write_file
from fedpa.errors import ConfigError, FedpaError
from fedpa.federation.form import Reason
from fedpa.federation.order import Base, Order, Report, Sums

__all__ = ["RayDriver", "check_options"]

_log = logging.getLogger(__name__)
_SEAL = ".seal-"
_DEATHS = 3
_LATE = 6
_PATIENCE_SECONDS = 30.0
Arguments = Callable[[int], tuple[Any, ...]]


def check_options(deadline: float | None, threads: int | None) -> None:
    """Refuse options that are out of range, or any if Ray is not installed.

    Raises
    ------
    ConfigError
    """
    if find_spec("ray") is None:
        raise missing()
    if deadline is not None and not deadline > 0:
        raise ConfigError(f"deadline: found {deadline}, expected a number of seconds above 0")
    if threads is not None and threads < 1:
        raise ConfigError(f"threads: found {threads}, expected 1 or more")


class RayDriver:
    """Nodes that are actors.

    Parameters
    ----------
    plan : Plan
        Its folder must be on storage that all machines of the cluster share, under one name; so must be what it names.
    address : str, optional
        ``auto`` for the cluster that runs on this machine, or ``host:port``; by default Ray is started on this machine
        and ends with the driver.
    deadline : float, optional
        Seconds after which a node is left out of a round; by default all are waited for.
    threads : int
        That each actor computes on.

    Attributes
    ----------
    counts : Counter
        How often so far a node was ``late`` with an answer and how often it ``died``.

    Raises
    ------
    ConfigError
        If an option is out of range.
    """

    apart = False

    def __init__(
        self, plan: Plan, *, address: str | None = None, deadline: float | None = None, threads: int = 1
    ) -> None:
        check_options(deadline, threads)
        self._plan, self._address, self._deadline, self._threads = plan, address, deadline, threads
        self.counts: Counter[str] = Counter()
        self._cluster: Cluster | None = None
        self._ray: Any = None
        self._class: Any = None
        self._seal: Seal | None = None
        self._actors: dict[int, Any] = {}
        self._total: Any = None
        self._order: Order | None = None
        self._sent: Any = None
        self._busy: dict[Any, int] = {}  # calls that were given up, with the node that is still at them
        self._lateness: Counter[int] = Counter()

    @property
    def nodes(self) -> Sequence[int]:
        """Numbers of the nodes."""
        return range(self._plan.shards)

    def start(self) -> dict[int, list[int]]:
        """Connect and start the actors, with the sum of their item counts.

        Returns
        -------
        dict of int to list of int
            By node the generations that it could start from.

        Raises
        ------
        ConfigError
            If Ray is not installed or not there, the cluster is too small, or a machine of it does not see the run's
            folder or has other data.
        """
        self._cluster = Cluster(self._address, self._plan.shards * self._threads)
        self._ray = self._cluster.ray
        self._seal = self._sealed()
        self._actors = {index: self._spawn(index) for index in self.nodes}
        tallies = [tally for tally in self._ask("tally", lambda _: ()).values() if tally is not None]
        self._total = self._ray.put(functools.reduce(operator.add, tallies) if tallies else None)
        return self._ask("start", lambda _: (self._total,))

    def evaluate(self, order: Order, bases: Mapping[int, Base]) -> dict[int, Sums]:
        """Have all nodes score; those that are late are left out."""
        sent = self._put(order)
        return self._ask("evaluate", lambda index: (self._total, sent, bases[index]), self._deadline)

    def train(self, order: Order, bases: Mapping[int, Base]) -> dict[int, Report]:
        """Have all nodes train; those that are late are left out."""
        sent = self._put(order)
        answers = self._ask("train", lambda index: (self._total, sent, bases[index]), self._deadline)
        return {index: convert_report(report, to_tensor) for index, report in answers.items()}

    def refusals(self) -> list[tuple[int, Reason]]:
        """None: actors run this code, on data that was checked."""
        return []

    def close(self) -> None:
        """End the actors, and Ray if it was started here."""
        if self._cluster is None:
            return
        if self._ray.is_initialized():
            with contextlib.suppress(self._ray.exceptions.RayError):  # where the cluster itself is gone
                for actor in self._actors.values():
                    self._ray.kill(actor)
        self._total = self._order = self._sent = None
        self._actors, self._busy = {}, {}
        if self._seal is not None:
            Path(self._seal.file).unlink(missing_ok=True)
        self._cluster.leave(keep_logs=self.counts["died"] > 0)
        self._cluster = None

    def _sealed(self) -> Seal:
        """Leave a mark in the run's folder, by which an actor knows it."""
        folder, content = Path(self._plan.folder), secrets.token_hex(16)
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(f"{_SEAL}*"):
            left.unlink()
        file = folder / f"{_SEAL}{content[:8]}"
        write_file(file, content.encode())
        return Seal(str(file.resolve()), content, facts_of(self._plan))

    def _spawn(self, index: int) -> Any:
        options: dict[str, Any] = {"num_cpus": self._threads, "max_restarts": 0, "scheduling_strategy": "SPREAD"}
        if self._plan.torch_device.type == "cuda":
            options["num_gpus"] = 1
        if self._class is None:
            self._class = self._ray.remote(ShardActor)
        return self._class.options(**options).remote(self._plan, index, self._threads, self._seal)

    def _put(self, order: Order) -> Any:
        """Put an order into the store, once for scoring and training."""
        if order is not self._order:
            self._order, self._sent = order, self._ray.put(convert_order(order, to_array))
        return self._sent

    def _ask(self, method: str, arguments: Arguments, deadline: float | None = None) -> dict[int, Any]:
        """Call a method of every actor; by node the answers that came before the deadline."""
        pending: dict[Any, int] = dict(self._busy)
        for index in set(self.nodes) - set(pending.values()):
            pending[self._call(index, method, arguments)] = index
        end = None if deadline is None else time.monotonic() + deadline
        answers: dict[int, Any] = {}
        deaths: Counter[int] = Counter()
        while pending:
            left = _PATIENCE_SECONDS if end is None else end - time.monotonic()
            done, _ = self._ray.wait(list(pending), timeout=max(0.0, left))
            if not done and end is not None:
                break
            if not done:
                _log.info("%s: waiting for nodes %s", method, _listed(pending.values()))
            for call in done:
                index = pending.pop(call)
                given_up = self._busy.pop(call, None) is not None
                try:
                    answer = self._answer(call)
                except self._deadly() as error:
                    deaths[index] += 1
                    self._revive(index, deaths[index], error)
                else:
                    self._lateness[index] = 0
                    if not given_up:
                        answers[index] = answer
                        continue
                pending[self._call(index, method, arguments)] = index
        self._busy = pending
        if pending:
            self._note_late(method)
        return dict(sorted(answers.items()))

    def _call(self, index: int, method: str, arguments: Arguments) -> Any:
        return getattr(self._actors[index], method).remote(*arguments(index))

    def _answer(self, call: Any) -> Any:
        """What a call came to; an error of ours is raised as it was in the actor."""
        try:
            return self._ray.get(call)
        except self._ray.exceptions.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, (FedpaError, OSError)):
                raise cause from None
            raise

    def _deadly(self) -> tuple[type[Exception], ...]:
        """Errors by which an actor, its process or its machine is gone."""
        found = self._ray.exceptions
        return found.RayActorError, found.WorkerCrashedError, found.OutOfMemoryError, found.NodeDiedError

    def _revive(self, index: int, deaths: int, error: Exception) -> None:
        """Start a dead node anew."""
        self.counts["died"] += 1
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        if deaths > _DEATHS:
            raise FedpaError(
                f"node {index}: died {deaths} times at one call; at last: {error}",
                "look at Ray's logs and at the memory of its machines, then go on with --resume",
            ) from error
        _log.warning("node %d: died and is started anew (%s)", index, reason)
        self._ray.kill(self._actors[index])  # where it was only out of reach
        self._actors[index] = self._spawn(index)

    def _note_late(self, method: str) -> None:
        """Count the nodes that are late, and replace those that were for too long."""
        self.counts["late"] += len(self._busy)
        _log.warning("%s: left out nodes %s, which are late", method, _listed(self._busy.values()))
        for call, index in list(self._busy.items()):
            self._lateness[index] += 1
            if self._lateness[index] >= _LATE:
                _log.warning("node %d: no answer in %d calls; it is started anew", index, _LATE)
                self._ray.kill(self._actors[index])
                self._actors[index] = self._spawn(index)
                self._lateness[index] = 0
                del self._busy[call]


def _listed(nodes: Any) -> str:
    return ", ".join(map(str, sorted(nodes)))
