"""The small run that these tests stop in every way, and how it ends when it is left alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from crash.worker import Worker, ready
from crash.world import BEST, World, essence


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """The data set and its foundation."""
    return World.make(tmp_path_factory.mktemp("crash"))


@pytest.fixture(scope="session")
def alone(world: World) -> dict[str, str]:
    """The run that nothing stopped."""
    run = world.adapt(world.folder / "alone")
    assert run.summary["best_round"] == BEST, "the best round is to be neither of the last two"
    assert any(name.startswith("personal") for name in essence(run.path))
    return essence(run.path)


@pytest.fixture(scope="session")
def worker(world: World) -> Iterator[Worker]:
    """A process whose children may be killed."""
    with ready(world) as process:
        yield process


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Where a run is to be; the folder above is not there yet."""
    return tmp_path / "runs" / "run"
