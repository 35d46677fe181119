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


@pytest.mark.slow
def test_killed_again_at_every_call_of_a_resumed_run(worker: Worker, out: Path, alone: dict[str, str]) -> None:
    """One after another until it is done, each child is killed a few calls on."""
    for step in (1, 2, 3, 5, 7):
        del step


def at_random_moments(worker: Worker, out: Path, alone: dict[str, str], kills: int) -> None:
    """Kill runs, and those that go on with them, after random times."""
    draw = random.Random(0)
    length = min(worker.run(out.with_name(f"timed-{n}")).seconds for n in range(3))
    while kills:
        while kills and worker.run(out, after=draw.uniform(0, length)).killed:
            kills -= 1
        assert not worker.run(out).killed
        assert essence(out) == alone
        shutil.rmtree(out.parent)


def test_killed_at_some_moments(worker: Worker, out: Path, alone: dict[str, str]) -> None:
    at_random_moments(worker, out, alone, SAMPLED_MOMENTS)


@pytest.mark.slow
def test_killed_at_two_hundred_moments(worker: Worker, out: Path, alone: dict[str, str]) -> None:
    at_random_moments(worker, out, alone, MOMENTS)
