"""A checkpoint of which any byte is wrong, or which is cut short anywhere, is told from a whole one."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from crash.calls import Call, watched
from crash.world import BEST, ROUNDS, World, essence
from fedpa.adaptation import Job
from fedpa.drivers.local import LocalDriver
from fedpa.errors import ArtifactError
from fedpa.federation.coordinator import Coordinator, checkpoints, saved_round
from fedpa.methods import FederatedMethod, find_method
from fedpa.unfinished import read_config, room_of

SAMPLED = 60
KEPT = (BEST, ROUNDS - 1, ROUNDS)


class Stopped(BaseException):
    """Ends a run."""


@pytest.fixture
def out(world: World, out: Path) -> Path:
    """A run that was stopped after its last round, before its results were written."""

    def stop(call: Call, act: Callable[..., Any]) -> Any:
        if call.changes and "shared.safetensors" in call.path:
            raise Stopped
        return None if call.kind == "sync" else act()

    with pytest.raises(Stopped), watched(out.parent, stop):
        world.adapt(out)
    return out


class Loader:
    """Finds the last good round of a run again and again, as `fedpa adapt --resume` does, and does not go on."""

    def __init__(self, world: World, room: Path) -> None:
        config = read_config(room)
        found = find_method(config["method"])
        assert issubclass(found, FederatedMethod)
        self.method = found(found.settings_type.checked(config["settings"], "the run"))
        job = Job(room, config, self.method, world.foundation, world.dataset, sync=False)
        self.model = self.method.model(world.foundation, world.dataset, 0, torch.device("cpu"))
        self.node = job.plan.node(0, dataset=world.dataset, foundation=world.foundation, model=self.model)
        self.driver = LocalDriver([self.node])
        self.driver.start()
        self.room = room
        self.states = {number: saved_round(room, number)[1] for number in KEPT}

    def number(self) -> int:
        """That of the round, of which the server then has the state; -1 if there is none."""
        server = self.method.server(self.model.layout)
        coordinator = Coordinator(server, self.driver, self.method.settings, self.room, run="", sync=False)
        if not coordinator._resume({0: sorted(self.node.shard.store.held())}):
            return -1
        saved = server.saved()
        assert all(torch.equal(saved[name], value) for name, value in self.states[coordinator.number].items())
        return coordinator.number


def files_of(room: Path) -> list[Path]:
    """All files of the rounds that can be gone back to."""
    kept = [place for place in checkpoints(room).glob("*/[0-9]*") if int(place.name) in KEPT]
    found = sorted(path for place in kept for path in place.iterdir())
    assert len(found) == len(KEPT) * (2 + 3)
    return found


def damages(file: Path, places: Iterable[int]) -> Iterator[tuple[str, bytes]]:
    """The file with a byte changed, and cut short before it, at each of the places."""
    whole = file.read_bytes()
    for place in places:
        yield f"changed at {place}", whole[:place] + bytes([whole[place] ^ (1 << place % 8)]) + whole[place + 1 :]
        yield f"cut at {place}", whole[:place]


def told(loader: Loader, file: Path, places: Iterable[int], caplog: pytest.LogCaptureFixture) -> int:
    """Damage a file in many ways, and see each time that the last good round is found, and that somebody says so."""
    whole, number, count = file.read_bytes(), int(file.parent.name), 0
    for damage, content in damages(file, places):
        file.write_bytes(content)
        caplog.clear()
        found = loader.number()
        where = f"{file}, {damage}"
        assert found == (ROUNDS - 1 if number == ROUNDS else ROUNDS), where
        assert f"{file}: " in caplog.text, where
        assert "damaged" in caplog.text, where
        if number == ROUNDS:
            assert f"going on from round {ROUNDS - 1}" in caplog.text, where
        if number == BEST:
            assert f"round {BEST}, the best so far" in caplog.text, where
        count += 1
    file.write_bytes(whole)
    return count


def test_some_damage_is_told(world: World, out: Path, caplog: pytest.LogCaptureFixture) -> None:
    loader, draw = Loader(world, room_of(out)), random.Random(0)
    assert loader.number() == ROUNDS
    assert not caplog.text, "there is nothing to say of a whole one"
    for file in files_of(room_of(out)):
        size = file.stat().st_size
        told(loader, file, {0, size - 1, *draw.sample(range(size), SAMPLED // 15)}, caplog)


@pytest.mark.slow
@pytest.mark.parametrize("role", ["server", "node-0"])
def test_all_damage_is_told(world: World, out: Path, caplog: pytest.LogCaptureFixture, role: str) -> None:
    loader = Loader(world, room_of(out))
    count = 0
    for file in files_of(room_of(out)):
        if role in file.parts:
            count += told(loader, file, range(file.stat().st_size), caplog)
    assert count > 10_000


@pytest.mark.parametrize("role", ["server", "node-0"])
def test_a_run_whose_last_round_is_damaged_ends_as_if_it_was_not(
    world: World, out: Path, alone: dict[str, str], role: str
) -> None:
    for file in files_of(room_of(out)):
        if role in file.parts and int(file.parent.name) == ROUNDS:
            content = file.read_bytes()
            file.write_bytes(content[: len(content) // 2])
    world.go_on(out)
    assert essence(out) == alone


def test_a_run_whose_best_round_is_damaged_ends(world: World, out: Path, alone: dict[str, str]) -> None:
    (checkpoints(room_of(out)) / "server" / f"{BEST:06d}" / "state.safetensors").write_bytes(b"")
    run = world.go_on(out)
    assert run.summary["best_round"] == ROUNDS, "of those that are left it is the best"
    assert len(run.history) == ROUNDS + 1
    name = f"checkpoints/server/{ROUNDS:06d}/state.safetensors"
    assert essence(out)[name] == alone[name]


def test_a_run_of_which_no_round_is_whole_is_not_begun_anew_in_silence(world: World, out: Path) -> None:
    for number in KEPT:
        shutil.rmtree(checkpoints(room_of(out)) / "node-0" / f"{number:06d}")
    with pytest.raises(ArtifactError, match=r"(?s)no round of which all is there and undamaged.*--overwrite"):
        world.go_on(out)
    assert (checkpoints(room_of(out)) / "server" / f"{ROUNDS:06d}").is_dir(), "what is left of it is kept"
