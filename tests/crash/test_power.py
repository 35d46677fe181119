"""A machine that loses its power, and with it what was not synced, loses nothing of the rounds that were completed."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from crash.disk import read_tree, write_tree
from crash.judge import Judge, LossError, State, states
from crash.trace import ANEW, FINISHED, Killed, Recorder, Reported, Step
from crash.world import ROUNDS, World, essence

DEPTH = 4
PUBLISHED = ("sync_file", "write_file", "sync_folder", "rename")
SITES = {
    "new_room: make_folder",
    "write_config: replace",
    "Generations.__init__: make_folder",
    *(f"Draft.publish (server): {part}" for part in PUBLISHED),
    *(f"Draft.publish (node): {part}" for part in PUBLISHED),
    "finish: sync_file",
    "finish: sync_folder",
    "take_place: sync_folder",
}
"""All statements by which a run asks for a sync."""

SPARED = [
    # Before the first round there is nothing to be lost; a node's folder is made after the server's, in the same place.
    (ANEW, "Draft.publish (server): rename", "server"),
    (ANEW, "Generations.__init__: make_folder", "checkpoints"),
    (ANEW, "Generations.__init__: make_folder", "run.unfinished"),
    (ANEW, "Generations.__init__: make_folder", "run.unfinished"),
    # At the end it is there; and these files were synced, two of them under another name.
    (ROUNDS, "Generations.__init__: make_folder", "checkpoints"),
    (ROUNDS, "finish: sync_file", "config.yaml"),
    (ROUNDS, "finish: sync_file", "personal-item_bias.safetensors"),
    (ROUNDS, "finish: sync_file", "personal.safetensors"),
]
"""Single syncs without which nothing is lost, since their statement did or does the same elsewhere: the round before,
the site and the file or folder."""


class Recorded(NamedTuple):
    """A run that nothing stopped."""

    steps: Sequence[Step | Reported]
    top: Path
    judge: Judge


def record(world: World, top: Path, *, shards: int = 1, kill_at: int | None = None) -> Recorded:
    """Run and note; a run that is killed goes on and is noted as one."""
    out = top / "deep" / "runs" / "run"
    top.mkdir()
    recorder = Recorder(top, kill_at=kill_at)
    if kill_at is not None:
        with pytest.raises(Killed), recorder.on():
            world.go_on(out, shards=shards)
        recorder.kill_at = None
    with recorder.on():
        world.go_on(out, shards=shards)
    return Recorded(recorder.steps, top, Judge(recorder.steps, top, out))


@pytest.fixture(scope="module")
def recorded(world: World, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """With one shard."""
    return record(world, tmp_path_factory.mktemp("power") / "disk")


def fault(found: Recorded, skip: set[int]) -> str | None:
    """What goes wrong without some syncs."""
    for state in states(found.steps, found.top, skip=skip):
        try:
            found.judge.check(state)
        except LossError as error:
            return str(error)
    return None


def survives(found: Recorded, *, begin: int = 0, depth: int = DEPTH, keep: int = 0) -> tuple[Counter[int], list[State]]:
    """Every state, counted by what a run comes to from it, and some of each; none may lose anything."""
    draw, outcomes, kept = random.Random(0), Counter[int](), dict[int, list[State]]()
    for state in states(found.steps, found.top, begin=begin, depth=depth):
        outcome = found.judge.check(state)
        outcomes[outcome] += 1
        place = draw.randrange(outcomes[outcome])
        if place < keep:
            kept.setdefault(outcome, [state] * keep)[place] = state
    return outcomes, [state for _, each in sorted(kept.items()) for state in each]


def no_loss(found: Recorded, depth: int) -> None:
    """All states were there, and none lost anything."""
    outcomes, _ = survives(found, depth=depth)
    assert outcomes.keys() == {ANEW, *range(ROUNDS + 1), FINISHED}
    assert outcomes.total() > 20_000


@pytest.mark.parametrize("shards", [1, 2])
def test_no_crash_loses_a_round_that_was_reported(world: World, tmp_path: Path, shards: int) -> None:
    no_loss(record(world, tmp_path / "disk", shards=shards), DEPTH)


@pytest.mark.slow
@pytest.mark.parametrize("shards", [1, 2])
def test_no_crash_of_many_more_loses_one(world: World, tmp_path: Path, shards: int) -> None:
    no_loss(record(world, tmp_path / "disk", shards=shards), 2 * DEPTH)


def test_without_any_one_statement_that_syncs_something_is_lost(recorded: Recorded) -> None:
    steps = [(place, step.site) for place, step in enumerate(recorded.steps) if isinstance(step, Step) and step.site]
    assert {site for _, site in steps} == SITES
    spared = [site for site in SITES if fault(recorded, {place for place, asked in steps if asked == site}) is None]
    assert not spared, "these statements are needless, or their need is not tested"


def test_without_any_one_sync_something_is_lost(recorded: Recorded) -> None:
    spared, reported = [], ANEW
    for place, step in enumerate(recorded.steps):
        if isinstance(step, Reported):
            reported = step.number
        elif step.site and fault(recorded, {place}) is None:
            spared.append((reported, step.site, Path(step.call.path).name))
    assert sorted(spared) == sorted(SPARED)


def goes_on(world: World, found: Recorded, state: State, out: Path, alone: dict[str, str]) -> None:
    """Go on for real from what a crash left."""
    write_tree(state.tree, out)
    run = world.go_on(out / "deep" / "runs" / "run")
    left = essence(run.path)
    if found.judge.came_to(state.tree) == FINISHED:  # the crash may have brought rounds back that were dropped
        left = {name: content for name, content in left.items() if name in alone}
    assert left == alone, f"after step {state.place}, of round {state.reported}"
    shutil.rmtree(out)


def test_runs_go_on_after_some_crashes(world: World, recorded: Recorded, out: Path, alone: dict[str, str]) -> None:
    for state in survives(recorded, depth=0, keep=1)[1]:
        goes_on(world, recorded, state, out, alone)


@pytest.mark.slow
def test_runs_go_on_after_many_crashes(world: World, recorded: Recorded, out: Path, alone: dict[str, str]) -> None:
    for state in survives(recorded, keep=15)[1]:
        goes_on(world, recorded, state, out, alone)


@pytest.mark.slow
def test_no_crash_after_a_kill_loses_a_round(world: World, recorded: Recorded, tmp_path: Path) -> None:
    """What a killed process did not sync is synced by the one that goes on."""
    kept = [step.call for step in recorded.steps if isinstance(step, Step) and step.call.changes]
    points = [number for number, call in enumerate(kept) if call.kind == "sync"]
    for number in points[::3]:
        found = record(world, tmp_path / str(number), kill_at=number)
        survives(found, depth=0)


def test_a_run_that_is_replaced_stays_whole_until_the_new_one_is(world: World, tmp_path: Path) -> None:
    top, out = tmp_path, tmp_path / "run"
    world.adapt(out, lr=0.01)
    old = read_tree(top)
    recorder = Recorder(top, old=old)
    with recorder.on():
        world.adapt(out, overwrite=True)
    judge, seen = Judge(recorder.steps, top, out, old), Counter[str]()
    assert judge.final["shared.safetensors"] != old["run"]["shared.safetensors"]
    for state in states(recorder.steps, top, old=old, depth=DEPTH):
        rest = dict(state.tree)
        if rest.get("run") == old["run"]:
            del rest["run"]
            seen["old"] += 1
        elif "run" in rest:
            assert judge.came_to({"run": rest["run"]}) == FINISHED
            seen["new"] += 1
        else:
            seen["neither"] += 1
        judge.check(State(rest, state.place, state.reported))
    assert seen.keys() == {"old", "new", "neither"}
