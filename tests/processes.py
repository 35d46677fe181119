"""What tests that kill processes ask: how far a run has come, and whether a process has ended."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from fedpa.unfinished import room_of


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
