"""A disk that is full or broken ends a run with words, not with a loss."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from crash.calls import Call, watched
from crash.world import ROUNDS, World, essence
from fedpa.errors import FedpaError
from fedpa.federation.coordinator import Coordinator
from fedpa.unfinished import room_of

NEEDS_SPACE = {"open", "write", "size", "sync", "mkdir", "link", "move"}
SAMPLED = 12


@dataclass
class Disk:
    """One that fails at a call; a full one fails at all later ones too that need space.

    Attributes
    ----------
    fails_at : int
        Number of a changing call.
    error : int
        ``errno.ENOSPC`` or ``errno.EIO``.
    calls : list of Call
        The changing ones.
    """

    fails_at: int
    error: int
    calls: list[Call] = field(default_factory=list)

    def __call__(self, call: Call, act: Callable[..., Any]) -> Any:
        if call.changes:
            self.calls.append(call)
            number = len(self.calls) - 1
            full = self.error == errno.ENOSPC and number > self.fails_at and call.kind in NEEDS_SPACE
            if number == self.fails_at or (full and self.fails_at >= 0):
                named = () if call.kind in {"write", "size", "sync"} else (call.path,)
                raise OSError(self.error, os.strerror(self.error), *named)
        return None if call.kind == "sync" else act()


@contextmanager
def rounds() -> Iterator[list[int]]:
    """Numbers of the rounds that a run begins at and completes."""
    found: list[int] = []
    checkpoint, resume = Coordinator._checkpoint, Coordinator._resume

    def completed(coordinator: Coordinator) -> None:
        checkpoint(coordinator)
        found.append(coordinator.number)

    def begun(coordinator: Coordinator, held: Any) -> bool:
        there = resume(coordinator, held)
        found.append(coordinator.number if there else -1)
        return there

    with mock.patch.multiple(Coordinator, _checkpoint=completed, _resume=begun):
        yield found


def calls_of(world: World, out: Path) -> list[Call]:
    """All changing calls of a run that nothing stops."""
    disk = Disk(-1, 0)
    with watched(out.parent, disk):
        world.adapt(out)
    shutil.rmtree(out.parent)
    return disk.calls


def fails(world: World, out: Path, alone: dict[str, str], at: int, error: int) -> bool:
    """Run on a disk that fails at a call, then on one that does not; returns whether the first one ended."""
    disk, stopped, done = Disk(at, error), None, -1
    with rounds() as before:
        try:
            with watched(out.parent, disk):
                world.adapt(out)
        except FedpaError as found:
            stopped, done = found, max(before, default=-1)
    if stopped is not None:
        assert os.strerror(error) in stopped.message
        call = disk.calls[at]
        named = [f"{path}: could not be written" for path in (call.path, call.other)]
        named += [f"{path}: cannot write here" for path in (out.parent, room_of(out))]
        assert any(map(stopped.message.startswith, named)), f"{stopped.message} does not name {call.path}"
        assert stopped.fix is not None and ("free some space" in stopped.fix), "it is to say what to do"
        assert done < 1 or f"--resume {out}" in stopped.fix
    with rounds() as after:
        world.go_on(out)
    assert done < 1 or not after or after[0] >= done, "a round that was completed is gone"
    left = {name: text for name, text in essence(out).items() if "/." not in name or stopped is not None}
    assert left == alone, f"after {os.strerror(error)} at call {at}: {disk.calls[at].kind} {disk.calls[at].path}"
    shutil.rmtree(out.parent)
    return stopped is not None


def test_some_calls_fail(world: World, out: Path, alone: dict[str, str]) -> None:
    calls = calls_of(world, out)
    places = {round(place * (len(calls) - 1) / SAMPLED) for place in range(SAMPLED + 1)}
    for number, place in enumerate(sorted(places)):
        needs = calls[place].kind in NEEDS_SPACE
        ended = fails(world, out, alone, place, errno.ENOSPC if number % 2 and needs else errno.EIO)
        assert ended or not needs


@pytest.mark.slow
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
def test_every_call_fails(world: World, out: Path, alone: dict[str, str], error: int) -> None:
    calls = calls_of(world, out)
    ended = 0
    for place, call in enumerate(calls):
        if error == errno.EIO or call.kind in NEEDS_SPACE:
            ended += fails(world, out, alone, place, error)
    assert ended > 40 * ROUNDS
