"""Rounds of a run: equal however users are divided, and never lost, wherever the run is stopped."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

import fedpa
from fedpa import adaptation
from fedpa.adaptation import adapt, resume
from fedpa.drivers.local import LocalDriver
from fedpa.errors import ArtifactError
from fedpa.federation.coordinator import Coordinator
from fedpa.federation.generations import Generations
from fedpa.federation.order import Base, Order, Report
from fedpa.federation.server import Server, Upload
from fedpa.federation.shard import Shard
from fedpa.models.foundation import load_foundation
from fedpa.run import Run, load_run
from fedpa.unfinished import room_of
from prepared import Small, small

ROUNDS = 5
COMMON: dict[str, Any] = {
    "rounds": ROUNDS,
    "patience": 0,
    "participation": 0.5,
    "batch_size": 64,
    "keep_optimizer": True,
    "server_optimizer": "adam",
    "server_lr": 0.05,
}
SPECS: dict[str, dict[str, Any]] = {
    "fedpa": {"rank": 2, "gate_hidden": (3, 2), "lr": 0.02},
    "pfedrec": {"width": 4, "optimizer": "adam", "lr": 0.01, "item_rate": 1.0},
    "gpfedrec": {
        "width": 4,
        "hidden": (6, 4),
        "neighbours": 3,
        "optimizer": "adam",
        "lr": 0.01,
        "item_rate": 1.0,
        "server_optimizer": "mean",
    },
}
every = pytest.mark.parametrize("name", SPECS)


class Killed(Exception):  # noqa: N818
    """Where the process ends."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return small(tmp_path_factory)


def go(made: Small, out: Path, name: str = "fedpa", **values: Any) -> Run:
    foundation = made.foundation if name == "fedpa" else None
    path = made.foundation_path if name == "fedpa" else None
    settings = COMMON | SPECS[name] | values
    return adapt(foundation, made.dataset, out=out, method=name, seed=1, foundation_path=path, **settings)


Alone = Callable[..., Run]


@pytest.fixture(scope="module")
def alone(made: Small, tmp_path_factory: pytest.TempPathFactory) -> Alone:
    """A run that nobody stopped, made once for equal settings."""

    @cache
    def found(name: str, **values: Any) -> Run:
        return go(made, tmp_path_factory.mktemp("alone") / "run", name, **values)

    return found


def timeless(run: Run) -> list[dict[str, Any]]:
    """What was noted of every round, but for how long it took and by how many nodes."""
    noted = {"nodes"}
    return [{k: v for k, v in line.items() if "seconds" not in k and k not in noted} for line in run.history]


def models(run: Run) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run.path.glob("*.safetensors")}


def kept(run: Run) -> dict[str, bytes]:
    """Everything of every round that can be gone back to, but for what was noted beside it."""
    folder = run.path / "checkpoints"
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.safetensors")}


def check_same(found: Run, expected: Run) -> None:
    """To the bit, with nothing left of how it came about."""
    assert models(found) == models(expected)
    assert timeless(found) == timeless(expected)
    assert kept(found) == kept(expected)
    names = [sorted(p.name for p in run.path.rglob("*")) for run in (found, expected)]
    assert names[0] == names[1]
    summaries = [{k: v for k, v in run.summary.items() if "seconds" not in k} for run in (found, expected)]
    assert summaries[0] == summaries[1]
    assert sorted(path.name for path in found.path.parent.iterdir()) == [found.path.name]


@every
def test_shards_change_no_byte(made: Small, tmp_path: Path, alone: Alone, name: str) -> None:
    whole = alone(name)
    assert "personal.safetensors" in models(whole)
    assert len({line["participants"] for line in whole.history[1:]}) > 1
    for shards in (2, 7):
        found = go(made, tmp_path / str(shards), name, shards=shards)
        assert models(found) == models(whole)
        assert timeless(found) == timeless(whole)
        assert [line["nodes"] for line in found.history[1:]] == [shards] * ROUNDS
        nodes = sorted(path.name for path in (found.path / "checkpoints").iterdir())
        assert nodes == [*(f"node-{node}" for node in range(shards)), "server"]
        assert (load_run(found.path).scores == whole.scores).all()


class Stop:
    """Ends the process, as it were, at a moment of a run: its folder stays as it is then."""

    def __init__(self, room: Path, copy: Path) -> None:
        self.room, self.copy = room, copy
        self._first = threading.Lock()

    def kill(self) -> None:
        if self._first.acquire(blocking=False):  # threads may come here side by side
            shutil.copytree(self.room, self.copy)
        raise Killed

    def leave(self) -> None:
        """Put the folder back, after whatever an exception cleaned up."""
        shutil.rmtree(self.room, ignore_errors=True)
        self.copy.rename(self.room)


Where = Callable[[pytest.MonkeyPatch, Stop, int], None]


def before_a_node_trains(patch: pytest.MonkeyPatch, stop: Stop, number: int) -> None:
    plain = Shard.round

    def trains(self: Shard, state: Any, found: int, downlink: Any = ()) -> Upload:
        if found == number:
            stop.kill()
        return plain(self, state, found, downlink)

    patch.setattr(Shard, "round", trains)


def between_two_nodes(patch: pytest.MonkeyPatch, stop: Stop, number: int) -> None:
    """The first node is done with the round, the second is not."""
    plain, seen = Shard.round, list[int]()

    def trains(self: Shard, state: Any, found: int, downlink: Any = ()) -> Upload:
        seen.append(found)
        if seen.count(number) == 2:
            stop.kill()
        return plain(self, state, found, downlink)

    patch.setattr(Shard, "round", trains)


def while_a_node_writes(patch: pytest.MonkeyPatch, stop: Stop, number: int) -> None:
    plain, trained = Shard._sums, Shard.round
    now = [0]

    def trains(self: Shard, state: Any, found: int, downlink: Any = ()) -> Upload:
        now[0] = found
        return trained(self, state, found, downlink)

    def sums(self: Shard, *arguments: Any) -> Upload:
        if now[0] == number:
            stop.kill()
        return plain(self, *arguments)

    patch.setattr(Shard, "round", trains)
    patch.setattr(Shard, "_sums", sums)


def before_the_checkpoint(patch: pytest.MonkeyPatch, stop: Stop, number: int) -> None:
    plain = Coordinator._checkpoint

    def writes(self: Coordinator) -> None:
        if self.number == number:
            stop.kill()
        plain(self)

    patch.setattr(Coordinator, "_checkpoint", writes)


def before_others_are_dropped(patch: pytest.MonkeyPatch, stop: Stop, number: int) -> None:
    """The server's checkpoint is written, those of before are all there still."""
    plain = Generations.keep

    def keeps(self: Generations, numbers: Any) -> None:
        if self.folder.name == "server" and max(self.numbers()) == number:
            stop.kill()
        plain(self, numbers)

    patch.setattr(Generations, "keep", keeps)


def before_it_is_scored(patch: pytest.MonkeyPatch, stop: Stop, number: int) -> None:
    plain = Coordinator._evaluate

    def scores(self: Coordinator, order: Order, bases: Mapping[int, Base]) -> float:
        if self.number == number:
            stop.kill()
        return plain(self, order, bases)

    patch.setattr(Coordinator, "_evaluate", scores)


def before_it_has_its_name(patch: pytest.MonkeyPatch, stop: Stop, _: int) -> None:
    """All is there; only the folder's name is not."""
    patch.setattr(adaptation, "finish", lambda *_, **__: stop.kill())


PLACES: tuple[Where, ...] = (
    before_a_node_trains,
    between_two_nodes,
    while_a_node_writes,
    before_the_checkpoint,
    before_others_are_dropped,
    before_it_is_scored,
)


def stopped(made: Small, out: Path, where: Where, number: int, name: str = "fedpa", **values: Any) -> Path:
    """Begin a run that ends in round `number`; returns the folder that it leaves."""
    stop = Stop(room_of(out), out.with_name("copy"))
    with pytest.MonkeyPatch.context() as patch:
        where(patch, stop, number)
        with pytest.raises(Killed):
            go(made, out, name, **values)
    stop.leave()
    assert not out.exists()
    return stop.room


@pytest.mark.parametrize("number", range(1, ROUNDS + 1))
def test_a_run_stopped_in_any_round_goes_on(made: Small, tmp_path: Path, alone: Alone, number: int) -> None:
    stopped(made, tmp_path / "run", before_a_node_trains, number)
    check_same(resume(tmp_path / "run"), alone("fedpa"))


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("number", [1, 4])
def test_a_run_stopped_anywhere_in_a_round_goes_on(
    made: Small, tmp_path: Path, alone: Alone, where: Where, number: int
) -> None:
    stopped(made, tmp_path / "run", where, number, shards=2)
    check_same(resume(tmp_path / "run", foundation=made.foundation, dataset=made.dataset), alone("fedpa", shards=2))


@pytest.mark.slow
@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("number", range(1, ROUNDS + 1))
@pytest.mark.parametrize("name", ["pfedrec", "gpfedrec"])
def test_every_method_goes_on_from_anywhere(
    made: Small, tmp_path: Path, alone: Alone, name: str, where: Where, number: int
) -> None:
    stopped(made, tmp_path / "run", where, number, name, shards=2)
    check_same(resume(tmp_path / "run"), alone(name, shards=2))


@pytest.mark.parametrize("name", ["pfedrec", "gpfedrec"])
def test_moments_and_what_single_users_receive_are_gone_on_with(
    made: Small, tmp_path: Path, alone: Alone, name: str
) -> None:
    stopped(made, tmp_path / "run", between_two_nodes, 3, name, shards=2)
    check_same(resume(tmp_path / "run"), alone(name, shards=2))


@pytest.mark.parametrize("shards", [1, 2])
def test_a_run_that_only_lacks_its_name_gets_it(made: Small, tmp_path: Path, alone: Alone, shards: int) -> None:
    stopped(made, tmp_path / "run", before_it_has_its_name, 0, shards=shards)
    check_same(resume(tmp_path / "run"), alone("fedpa", shards=shards))


def test_a_run_may_be_stopped_again_and_again(made: Small, tmp_path: Path, alone: Alone) -> None:
    out = tmp_path / "run"
    stopped(made, out, before_a_node_trains, 1)
    for number, where in enumerate([before_it_is_scored, before_the_checkpoint, while_a_node_writes], 2):
        with pytest.MonkeyPatch.context() as patch:
            stop = Stop(room_of(out), tmp_path / "copy")
            where(patch, stop, number)
            with pytest.raises(Killed):
                resume(out)
        stop.leave()
    check_same(resume(out), alone("fedpa"))


def test_a_failure_keeps_the_rounds_that_were_completed(made: Small, tmp_path: Path, alone: Alone) -> None:
    """Unlike a process that was killed, one that fails cleans up, but not what it can go on from."""
    out = tmp_path / "run"

    def fails(self: Shard, state: Any, number: int, downlink: Any = ()) -> Upload:
        if number == 3:
            raise OSError(28, "No space left on device")
        return plain(self, state, number, downlink)

    plain = Shard.round
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Shard, "round", fails)
        with pytest.raises(ArtifactError, match="No space left on device") as caught:
            go(made, out)
    assert f"--resume {out}" in (caught.value.fix or "")
    assert [path.name for path in tmp_path.iterdir()] == ["run.unfinished"]
    check_same(resume(out), alone("fedpa"))


def scored(patch: pytest.MonkeyPatch, values: Mapping[int, float]) -> None:
    """Have each round be as good as a test wants."""
    patch.setattr(Coordinator, "_selected", lambda self, _: values[self.number])


RISING = {number: float(number) for number in range(ROUNDS + 1)}
FALLING = {number: -float(number) for number in range(ROUNDS + 1)}
EARLY = RISING | {2: 99.0}


@pytest.fixture(params=[RISING, FALLING, EARLY], ids=["rising", "falling", "early"])
def course(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> dict[int, float]:
    values: dict[int, float] = request.param
    scored(monkeypatch, values)
    return values


@pytest.fixture(scope="module")
def courses(made: Small, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Mapping[int, float]], Run]:
    """Runs left alone, by how good their rounds are."""
    done: dict[str, Run] = {}

    def found(values: Mapping[int, float]) -> Run:
        key = str(values)
        if key not in done:
            done[key] = go(made, tmp_path_factory.mktemp("course") / "run", shards=2)
        return done[key]

    return found


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.unlink()  # a file may have other names
    path.write_bytes(content)


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
    with caplog.at_level(logging.WARNING):
        yield lambda: [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("file", ["state.safetensors", "generation.json"])
def test_a_damaged_checkpoint_of_the_server_is_passed_over(
    made: Small,
    tmp_path: Path,
    course: dict[int, float],
    courses: Callable[[Mapping[int, float]], Run],
    said: Callable[[], list[str]],
    file: str,
) -> None:
    room = stopped(made, tmp_path / "run", before_a_node_trains, 4, shards=2)
    damaged = room / "checkpoints" / "server" / "000003" / file
    flip(damaged)
    found = resume(tmp_path / "run")
    assert f"{damaged}: damaged: its checksum is not the one noted; it is left out" in said()
    assert "round 3: is not whole; going on from round 2" in said()
    check_same(found, courses(course))
    assert found.summary["best_round"] == max(course, key=lambda number: course[number])


@pytest.mark.parametrize("node", [0, 1])
def test_a_damaged_generation_of_a_node_is_passed_over(
    made: Small,
    tmp_path: Path,
    course: dict[int, float],
    courses: Callable[[Mapping[int, float]], Run],
    said: Callable[[], list[str]],
    node: int,
) -> None:
    room = stopped(made, tmp_path / "run", before_it_is_scored, 3, shards=2)
    damaged = room / "checkpoints" / f"node-{node}" / "000003" / "personal.safetensors"
    flip(damaged)
    found = resume(tmp_path / "run")
    assert f"{damaged}: damaged: its checksum is not the one noted; it is left out" in said()
    assert any(f"round 3: node {node} does not hold what its devices kept of it" in line for line in said())
    assert "round 3: is not whole; going on from round 2" in said()
    check_same(found, courses(course))


@pytest.mark.parametrize("place", ["server", "node-0"])
def test_without_a_whole_round_nothing_is_resumed(
    made: Small, tmp_path: Path, said: Callable[[], list[str]], place: str
) -> None:
    room = stopped(made, tmp_path / "run", before_a_node_trains, 4, shards=2)
    for folder in sorted((room / "checkpoints" / place).glob("[0-9]*")):
        flip(next(folder.glob("*.safetensors")))
    before = sorted(room.rglob("*"))
    with pytest.raises(ArtifactError, match="no round of which all is there and undamaged") as caught:
        resume(tmp_path / "run")
    assert str(room / "checkpoints") in caught.value.message
    assert "--overwrite" in (caught.value.fix or "")
    assert len(said()) >= 2
    assert [path for path in sorted(room.rglob("*")) if ".partial" not in str(path)] == before
    assert go(made, tmp_path / "run", overwrite=True).summary["rounds"] == ROUNDS


@pytest.mark.parametrize("place", ["server", "node-1"])
def test_if_only_the_best_round_is_damaged_it_is_said(
    made: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Callable[[], list[str]], place: str
) -> None:
    scored(monkeypatch, {0: 0.0, 1: 9.0, 2: 1.0, 3: 1.0, 4: 3.0, 5: 2.0})
    room = stopped(made, tmp_path / "run", before_a_node_trains, 4, shards=2)
    assert sorted(path.name for path in (room / "checkpoints" / "server").iterdir()) == ["000001", "000002", "000003"]
    flip(next((room / "checkpoints" / place / "000001").glob("*.safetensors")))
    found = resume(tmp_path / "run")
    assert "round 1, the best so far: is not whole; the best one from here on is kept" in said()
    assert (found.summary["best_round"], found.summary["rounds"]) == (4, ROUNDS)
    assert np.isfinite(load_run(found.path).scores).all()


def test_patience_goes_on_where_it_was(made: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scored(monkeypatch, {0: 0.0, 1: 9.0, 2: 1.0, 3: 1.0, 4: 1.0, 5: 99.0})
    expected = go(made, tmp_path / "alone" / "run", patience=3)
    assert (expected.summary["best_round"], expected.summary["rounds"]) == (1, 4)
    for number in (3, 4):
        out = tmp_path / str(number) / "run"
        out.parent.mkdir()
        stopped(made, out, before_it_is_scored, number, patience=3)
        check_same(resume(out), expected)


def test_there_is_nothing_to_resume(made: Small, tmp_path: Path, alone: Alone) -> None:
    with pytest.raises(ArtifactError, match="nothing to resume, there is no such run"):
        resume(tmp_path / "run")
    done = alone("fedpa")
    before = models(done)
    with pytest.raises(ArtifactError, match="nothing to resume, the run is finished"):
        resume(done.path)
    assert models(done) == before
    assert [*tmp_path.iterdir()] == []


HOLD = """
import fcntl, sys
file = open(sys.argv[1], "r+")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def test_two_processes_do_not_work_on_one_run(made: Small, tmp_path: Path, alone: Alone) -> None:
    room = stopped(made, tmp_path / "run", before_a_node_trains, 3)
    before = {path: path.read_bytes() for path in room.rglob("*") if path.is_file()}
    command = [sys.executable, "-c", HOLD, str(room / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdin is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ArtifactError, match="another process works on this run"):
            resume(tmp_path / "run")
        with pytest.raises(ArtifactError, match="another process works on this run"):
            go(made, tmp_path / "run", overwrite=True)
        assert {path: path.read_bytes() for path in room.rglob("*") if path.is_file()} == before
        other.stdin.close()
        assert other.wait(30) == 0
    check_same(resume(tmp_path / "run"), alone("fedpa"))


def test_an_unfinished_run_is_not_overwritten_unasked(made: Small, tmp_path: Path, alone: Alone) -> None:
    room = stopped(made, tmp_path / "run", before_a_node_trains, 3)
    before = {path: path.read_bytes() for path in room.rglob("*") if path.is_file()}
    with pytest.raises(ArtifactError, match=f"{room}: an unfinished run is there") as caught:
        go(made, tmp_path / "run")
    assert f"--resume {tmp_path / 'run'}" in (caught.value.fix or "")
    assert {path: path.read_bytes() for path in room.rglob("*") if path.is_file()} == before
    check_same(go(made, tmp_path / "run", overwrite=True), alone("fedpa"))


def test_a_finished_run_stays_until_its_successor_is_finished(made: Small, tmp_path: Path, alone: Alone) -> None:
    first = go(made, tmp_path / "run", rounds=1)
    before = models(first)
    stop = Stop(room_of(tmp_path / "run"), tmp_path / "copy")
    with pytest.MonkeyPatch.context() as patch:
        before_a_node_trains(patch, stop, 3)
        with pytest.raises(Killed):
            go(made, tmp_path / "run", overwrite=True)
    stop.leave()
    assert models(load_run(tmp_path / "run")) == before
    check_same(resume(tmp_path / "run"), alone("fedpa"))


def test_only_what_the_run_was_begun_with_is_gone_on_with(made: Small, tmp_path: Path) -> None:
    room = stopped(made, tmp_path / "run", before_a_node_trains, 3)
    other = fedpa.pretrain(made.dataset, epochs=1, embedding=4, reader="none", batch_size=4096)
    with pytest.raises(ArtifactError, match="its adapters belong to foundation"):
        resume(tmp_path / "run", foundation=other)
    config = room / "config.yaml"
    text = config.read_text()
    config.write_text(text.replace(made.dataset.hash, "f" * 64))
    with pytest.raises(ArtifactError, match="is not the data set of"):
        resume(tmp_path / "run")
    config.write_text("method: fedpa\n")
    with pytest.raises(ArtifactError, match=r"config\.yaml: lacks seed, settings, dataset, foundation"):
        resume(tmp_path / "run")
    config.write_text(text)
    assert resume(tmp_path / "run").summary["rounds"] == ROUNDS


def test_a_foundation_is_found_where_it_was_saved(made: Small, tmp_path: Path) -> None:
    for number, foundation in enumerate((made.foundation, load_foundation(made.foundation_path))):
        run = adapt(foundation, made.dataset, out=tmp_path / str(number), rounds=0)
        assert run.config["foundation"]["path"] == str(made.foundation_path)
        assert load_run(run.path).foundation is not None


def test_a_foundation_that_was_never_saved_must_be_given(made: Small, tmp_path: Path, alone: Alone) -> None:
    unsaved = dataclasses.replace(made.foundation, path=None)
    with pytest.MonkeyPatch.context() as patch:
        before_a_node_trains(patch, stop := Stop(room_of(tmp_path / "run"), tmp_path / "copy"), 3)
        with pytest.raises(Killed):
            adapt(unsaved, made.dataset, out=tmp_path / "run", seed=1, **COMMON, **SPECS["fedpa"])
    stop.leave()
    with pytest.raises(ArtifactError, match="the foundation was never saved"):
        resume(tmp_path / "run")
    found = resume(tmp_path / "run", foundation=made.foundation)
    assert models(found) == models(alone("fedpa"))


@pytest.mark.parametrize(
    ("keep", "values", "expected"),
    [
        (2, RISING, [4, 5]),
        (2, FALLING, [0, 4, 5]),
        (2, EARLY, [2, 4, 5]),
        (4, EARLY, [2, 3, 4, 5]),
        (9, EARLY, [0, 1, 2, 3, 4, 5]),
    ],
)
def test_so_many_rounds_are_kept(
    made: Small,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    keep: int,
    values: dict[int, float],
    expected: list[int],
) -> None:
    scored(monkeypatch, values)
    found = go(made, tmp_path / "run", shards=2, keep_rounds=keep)
    for place in ("server", "node-0", "node-1"):
        folder = found.path / "checkpoints" / place
        assert sorted(path.name for path in folder.iterdir()) == [f"{number:06d}" for number in expected]
    best = max(values, key=lambda number: values[number])
    gathered = [
        safetensors.numpy.load_file(found.path / "checkpoints" / f"node-{node}" / f"{best:06d}/personal.safetensors")
        for node in (0, 1)
    ]
    whole = safetensors.numpy.load_file(found.path / "personal.safetensors")["personal"]
    assert (np.concatenate([part["personal"] for part in gathered]) == whole).all()


def test_ctrl_c_in_the_middle_of_moving_gives_the_last_whole_round(
    made: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored(monkeypatch, RISING)
    plain, steps = Server.step, [0]

    def step(self: Server, upload: Upload) -> None:
        steps[0] += 1
        if steps[0] == 3:
            self.state[0] = self.state[0] + 1
            raise KeyboardInterrupt
        plain(self, upload)

    with monkeypatch.context() as patch:
        patch.setattr(Server, "step", step)
        found = go(made, tmp_path / "stopped")
    assert (found.summary["interrupted"], found.summary["best_round"], found.summary["rounds"]) == (True, 2, 2)
    assert models(found) == models(go(made, tmp_path / "two", rounds=2))
    assert not room_of(found.path).exists()


def test_a_node_that_is_late_is_counted_and_goes_on_from_its_own_last_round(
    made: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Node 1 is late in rounds 2 and 3: its users are after round 3 as they were after round 1."""
    scored(monkeypatch, RISING)
    asked: list[tuple[int, Base]] = []
    plain = LocalDriver.train

    def train(self: LocalDriver, order: Order, bases: Mapping[int, Base]) -> dict[int, Report]:
        asked.append((order.number, bases[1]))
        found = plain(self, order, bases)
        if order.number in (2, 3):
            del found[1]
        return found

    expected = go(made, tmp_path / "1", shards=2, rounds=1)
    with monkeypatch.context() as patch:
        patch.setattr(LocalDriver, "train", train)
        found = go(made, tmp_path / "late", shards=2, rounds=3)
        more = go(made, tmp_path / "more", shards=2, rounds=4)
    assert [(line["nodes"], line["late"]) for line in more.history[1:]] == [(2, 0), (1, 1), (1, 1), (2, 0)]
    personal = [safetensors.numpy.load_file(r.path / "personal.safetensors")["personal"] for r in (expected, found)]
    half = -(-len(personal[0]) // 2)
    assert (personal[0][half:] == personal[1][half:]).all()
    assert (personal[0][:half] != personal[1][:half]).any()
    late = [base for number, base in asked[3:] if number >= 2]
    assert [base.generation for base in late] == [1, 1, 1]
    assert all(1 in base.keep for base in late)


def test_lines_are_written_as_the_run_goes(made: Small, tmp_path: Path) -> None:
    room = stopped(made, tmp_path / "run", before_a_node_trains, 4)
    lines = [json.loads(line) for line in (room / "metrics.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == [0, 1, 2, 3]
