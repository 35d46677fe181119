"""Processes that work side by side, each on one thread, and outlive the calls they are given."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Hashable, Iterator
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

from fedpa.errors import FedpaError

__all__ = ["Outcome", "Workers"]

_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS"), "1")
_SPAWN = multiprocessing.get_context("spawn")


class Outcome(NamedTuple):
    """What became of a call.

    Attributes
    ----------
    key : hashable
        As given to `Workers.submit`.
    value : object
        What the call returned; None if it failed.
    error : str or None
        Why it failed.
    details : str or None
        The traceback, where the failure is not one that the user can mend.
    seconds : float
        From start to end.
    """

    key: Any
    value: Any
    error: str | None
    details: str | None
    seconds: float


class Workers:
    """A few processes, started when they are needed; a context manager that ends them.

    A process that dies fails its call and is replaced. All of them end when this process does, however it ends. Ctrl-C
    is this process's business: the workers ignore it.

    Parameters
    ----------
    jobs : int
        How many at most.
    """

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs
        self._idle: list[_Worker] = []
        self._busy: dict[Any, _Worker] = {}

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in (*self._idle, *self._busy.values()):
            worker.end()
        self._idle, self._busy = [], {}

    @property
    def free(self) -> int:
        """How many calls can be submitted now."""
        return self.jobs - len(self._busy)

    @property
    def running(self) -> dict[Any, float]:
        """Keys of the running calls and their seconds so far."""
        now = time.perf_counter()
        return {worker.key: now - worker.begin for worker in self._busy.values()}

    def submit(self, key: Hashable, function: Callable[..., Any], *arguments: Any) -> None:
        """Give a call to an idle process; `function` is a module's own, so that it can be found by name.

        Raises
        ------
        RuntimeError
            If none is free.
        """
        if not self.free:
            raise RuntimeError(f"all {self.jobs} workers are busy")
        while self._idle:
            worker = self._idle.pop()
            try:
                worker.give(key, function, arguments)
            except OSError:  # It died while it had nothing to do.
                worker.end()
                continue
            self._busy[worker.connection] = worker
            return
        worker = _Worker()
        worker.give(key, function, arguments)
        self._busy[worker.connection] = worker

    def wait(self, timeout: float | None = None) -> list[Outcome]:
        """The calls that ended, as soon as one does; none if `timeout` seconds pass or nothing runs."""
        found = []
        for connection in wait(list(self._busy), timeout) if self._busy else []:
            worker = self._busy.pop(connection)
            outcome, alive = worker.result()
            found.append(outcome)
            if alive:
                self._idle.append(worker)
            else:
                worker.end()
        return found


class _Worker:
    """One process and this end of its pipe."""

    def __init__(self) -> None:
        self.connection, far = _SPAWN.Pipe()
        self.process = _SPAWN.Process(target=_serve, args=(far,), daemon=True)
        # A matrix library reads these when it is loaded, before any line of ours could set them over there.
        with _environment(_ONE_THREAD):
            self.process.start()
        far.close()
        self.key: Any = None
        self.begin = 0.0

    def give(self, key: Hashable, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self.key, self.begin = key, time.perf_counter()
        self.connection.send((function, arguments))

    def result(self) -> tuple[Outcome, bool]:
        """The outcome, and whether the process can go on."""
        try:
            value, error, details = self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            code = self.process.exitcode
            lacking = ", perhaps for lack of memory" if code == -signal.SIGKILL else ""
            error = f"its process ended with exit code {code}{lacking}"
            return Outcome(self.key, None, error, None, time.perf_counter() - self.begin), False
        return Outcome(self.key, value, error, details, time.perf_counter() - self.begin), True

    def end(self) -> None:
        self.connection.close()
        self.process.terminate()
        self.process.join()
        self.process.close()


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _serve(connection: Connection) -> None:
    """The life of a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import torch

    torch.set_num_threads(1)
    while True:
        try:
            function, arguments = connection.recv()
        except EOFError:
            return
        try:
            reply: tuple[Any, str | None, str | None] = (function(*arguments), None, None)
        except FedpaError as error:
            reply = (None, str(error), None)
        except BaseException as error:  # A method may raise anything; the others are to go on.
            reply = (None, f"{type(error).__name__}: {error}", traceback.format_exc())
        connection.send(reply)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
