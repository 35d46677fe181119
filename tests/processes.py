"""What tests that start and kill processes ask: for a port, how far a run has come, whether a process has ended."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

from fedpa.unfinished import room_of


def until(ready: Callable[[], Any], seconds: float, what: str, pause: float = 0.1) -> Any:
    """What `ready` gives as soon as it is true."""
    end = time.monotonic() + seconds
    while True:
        found = ready()
        if found:
            return found
        if time.monotonic() > end:
            raise AssertionError(f"{what}: not within {seconds:g} seconds")
        time.sleep(pause)


def free_port() -> int:
    """A port on this machine that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def last_round(out: Path) -> int:
    """The latest round of an unfinished run; -1 before the first state."""
    done = (room_of(out) / "checkpoints" / "server").glob("[0-9]*")
    return max((int(path.name) for path in done), default=-1)


def still_running(processes: Iterable[psutil.Process], within: float) -> list[psutil.Process]:
    """Those that have not ended after some seconds.

    An orphan that has ended stays a zombie until somebody reaps it; in a container that may be never.
    """
    end, left = time.monotonic() + within, [*processes]
    while (left := [process for process in left if _runs(process)]) and time.monotonic() < end:
        time.sleep(0.05)
    return left


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
