"""A process that is killed at any moment loses nothing of the rounds that it had completed."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from crash.worker import Worker
from crash.world import ROUNDS, essence

SAMPLED_CALLS, SAMPLED_MOMENTS, MOMENTS = 12, 5, 200


def killed_and_resumed(worker: Worker, out: Path, alone: dict[str, str], at: int, *, half: bool = False) -> None:
    """Kill a run at a call, have it go on, and compare what it came to."""
    assert worker.run(out, at=at, half=half).killed
    assert not worker.run(out).killed
    assert essence(out) == alone, f"killed at call {at}"
    shutil.rmtree(out.parent)


def calls_of(worker: Worker, out: Path) -> list[str]:
    """What a whole run does, call by call."""
    calls = worker.run(out).calls
    shutil.rmtree(out.parent)
    assert calls.count("sync") > 8 * ROUNDS, "every round is to be synced, on the server and on its node"
    assert {"open", "write", "size", "move", "link", "unlink", "mkdir", "rmdir"} < set(calls)
    return calls


def test_killed_at_some_calls(worker: Worker, out: Path, alone: dict[str, str]) -> None:
    calls = calls_of(worker, out)
    for number in range(SAMPLED_CALLS):
        killed_and_resumed(worker, out, alone, (2 * number + 1) * len(calls) // (2 * SAMPLED_CALLS), half=True)


@pytest.mark.slow
def test_killed_at_every_call(worker: Worker, out: Path, alone: dict[str, str]) -> None:
    for number, kind in enumerate(calls_of(worker, out)):
        killed_and_resumed(worker, out, alone, number)
        if kind == "write":
            killed_and_resumed(worker, out, alone, number, half=True)


def killed_at_moments(worker: Worker, out: Path, kills: int, shards: int) -> None:
    """Kill runs, and those that go on with them, after random times."""
    seconds = worker.run(out, shards=shards).seconds
    alone = essence(out)
    shutil.rmtree(out.parent)
    draw, left = random.Random(0), kills
    while left:
        while left and worker.run(out, after=draw.uniform(0, seconds), shards=shards).killed:
            left -= 1
        assert not worker.run(out, shards=shards).killed
        assert essence(out) == alone, f"with {left} of {kills} kills left"
        shutil.rmtree(out.parent)


def test_killed_at_some_moments(worker: Worker, out: Path) -> None:
    killed_at_moments(worker, out, SAMPLED_MOMENTS, shards=1)


@pytest.mark.slow
@pytest.mark.parametrize("shards", [1, 2])
def test_killed_at_two_hundred_moments(worker: Worker, out: Path, shards: int) -> None:
    killed_at_moments(worker, out, MOMENTS // 2, shards)
