"""What a run did to the disk, and when it said that a round was completed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import fedpa
from crash.calls import Call, watched
from crash.disk import Disk, Tree, read_tree
from fedpa.federation.coordinator import Coordinator

ANEW, FINISHED = -1, 1 << 30
_SOURCE = str(Path(fedpa.__file__).parent)
_ON_BEHALF = {"Coordinator._checkpoint": " (server)", "DeviceStore.commit": " (node)"}


@dataclass(frozen=True)
class Step:
    """A call that succeeded.

    Attributes
    ----------
    call : Call
    site : str
        Of a sync, which statement asked for it: the function that it is in, on whose behalf, and the one it calls.
    """

    call: Call
    site: str = ""


@dataclass(frozen=True)
class Reported:
    """From here on this round must not be lost.

    Attributes
    ----------
    number : int
        `FINISHED` when the run is.
    """

    number: int


class Killed(BaseException):
    """Takes the place of a signal: from here on nothing reaches the disk."""


@dataclass
class Recorder:
    """Notes all calls below a folder; syncs are noted alone, since nothing but a crash could tell.

    Attributes
    ----------
    folder : Path
    steps : list
    kill_at : int, optional
        Number of a changing call, before which the process ends as if it was killed.
    old : dict, optional
        What is below the folder before.
    """

    folder: Path
    steps: list[Step | Reported] = field(default_factory=list)
    kill_at: int | None = None
    old: Tree | None = None

    @contextmanager
    def on(self) -> Iterator[None]:
        """Note what is done within."""
        checkpoint, changes = Coordinator._checkpoint, 0

        def reported(coordinator: Coordinator) -> None:
            checkpoint(coordinator)
            self._report(coordinator.number)

        def note(call: Call, act: Callable[..., Any]) -> Any:
            nonlocal changes
            if call.changes:
                if self.kill_at is not None and changes >= self.kill_at:
                    raise Killed
                changes += 1
            if call.kind == "sync":
                self.steps.append(Step(call, _site()))
                return None
            made = act()
            self.steps.append(Step(call))
            return made

        with watched(self.folder, note), mock.patch.object(Coordinator, "_checkpoint", reported):
            yield
            self._report(FINISHED)

    def _report(self, number: int) -> None:
        self.steps.append(Reported(number))
        disk = Disk(str(self.folder), self.old)
        for step in self.steps:
            if isinstance(step, Step):
                disk.do(step.call)
        assert disk.now() == read_tree(self.folder), "something was written unseen"


def _site() -> str:
    frame, called, behalf, found = sys._getframe(2), "fsync", "", ""
    while frame is not None and not behalf:
        name = frame.f_code.co_qualname
        if frame.f_code.co_filename.startswith(_SOURCE):
            if not found and not frame.f_code.co_filename.endswith("durable.py"):
                found = name
            called = called if found else name
            behalf = _ON_BEHALF.get(name, "")
        frame = frame.f_back  # type: ignore[assignment]
    return f"{found}{behalf if found.startswith('Draft') else ''}: {called}"
