"""Going back to an earlier round: the run that would have ended there."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from fedpa.adaptation import adapt
from fedpa.continuing.rollback import kept_rounds, rollback
from fedpa.errors import ArtifactError, ConfigError
from fedpa.run import Run, load_run
from later import Later, later


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Later:
    return later(tmp_path_factory)


@pytest.fixture(scope="module")
def run(world: Later) -> Run:
    """Four rounds in two shards, all of which are kept."""
    return world.run(world.folder / "four", rounds=4, keep_rounds=5, shards=2)


def test_a_round_is_that_of_a_shorter_run(world: Later, run: Run, tmp_path: Path) -> None:
    assert kept_rounds(run) == [0, 1, 2, 3, 4]
    shorter = world.run(tmp_path / "shorter", rounds=2, shards=2, select="logloss")
    assert shorter.summary["best_round"] == 2
    earlier = rollback(run, 2, out=tmp_path / "earlier")
    assert (earlier.scores == shorter.scores).all()
    for name in ("shared.safetensors", "personal.safetensors"):
        assert (earlier.path / name).read_bytes() == (shorter.path / name).read_bytes()
    assert earlier.summary["best_round"] == earlier.summary["rounds"] == 2
    assert earlier.summary["splits"] == shorter.summary["splits"]
    assert [line["round"] for line in earlier.history] == [0, 1, 2]
    assert earlier.config["rolled_back"] == {"run": str(run.path), "best_round": run.summary["best_round"]}
    assert kept_rounds(earlier) == [2]
    again = rollback(earlier, 2, out=tmp_path / "again")
    assert (load_run(again.path).scores == shorter.scores).all()


def test_the_run_itself_stays(run: Run, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in sorted(run.path.rglob("*")) if path.is_file()}
    rollback(run, 1, out=tmp_path / "earlier")
    assert before == {path: path.read_bytes() for path in sorted(run.path.rglob("*")) if path.is_file()}


def test_nobody_has_anything_in_round_0(run: Run, tmp_path: Path) -> None:
    first = rollback(run, 0, out=tmp_path / "first")
    users = len(first.rows.users)
    assert not first._store().read(np.arange(users)).any()


def test_rounds_that_are_not_kept(world: Later, run: Run, tmp_path: Path) -> None:
    few = world.run(tmp_path / "few", rounds=4, select="logloss")
    assert kept_rounds(few) == [3, 4]
    with pytest.raises(ArtifactError, match="does not keep round 1, it keeps 3, 4") as caught:
        rollback(few, 1, out=tmp_path / "out")
    assert "--keep-rounds" in str(caught.value.fix)
    shutil.rmtree(few.path / "checkpoints")
    with pytest.raises(ArtifactError, match="does not keep round 4, it keeps none"):
        rollback(few, 4, out=tmp_path / "out")
    with pytest.raises(ArtifactError, match="already exists"):
        rollback(run, 1, out=few.path)
    counters = adapt(None, world.first, method="two-counters", out=tmp_path / "counters")
    with pytest.raises(ConfigError, match="method two-counters has no rounds"):
        rollback(counters, 0, out=tmp_path / "out")


@pytest.mark.parametrize("file", ["server/000002/state.safetensors", "node-1/000002/personal.safetensors"])
def test_a_damaged_round_is_not_gone_back_to(run: Run, tmp_path: Path, file: str) -> None:
    shutil.copytree(run.path, tmp_path / "copy")
    path = tmp_path / "copy/checkpoints" / file
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=f"{file}: damaged: its checksum is not the one noted"):
        rollback(load_run(tmp_path / "copy"), 2, out=tmp_path / "out")
    assert not [*tmp_path.glob("out*")]
    assert rollback(load_run(tmp_path / "copy"), 3, out=tmp_path / "out").summary["best_round"] == 3


def test_what_is_on_other_disks_is_not_gone_back_to(run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.path, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy/checkpoints/node-1")
    with pytest.raises(ArtifactError, match="what devices kept of round 2 is not here"):
        rollback(load_run(tmp_path / "copy"), 2, out=tmp_path / "out")
    assert not [*tmp_path.glob("out*")]
