"""Every day on the command line: prepare alike, go on, go back, forget, take a new foundation."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from command import ROUNDS, World, answer, fedpa, make_world
from fedpa import load_dataset, load_run
from fedpa.data.dataset import PRIVATE


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.mark.slow
def test_a_day(world: World, tmp_path: Path) -> None:
    today, run, earlier = tmp_path / "today", tmp_path / "run", tmp_path / "earlier"
    prepared = answer("prepare", "kuairand-pure", "--raw", world.raw, "--like", world.dataset, "--out", today)
    assert prepared["counts"]["since"]["users"]["left"] == 0
    went_on = answer("adapt", "--continue", world.run, today, "--out", run, "--set", "rounds=2", "--keep-rounds", 3)
    assert went_on["continues"]["users"]["new"] == 0
    assert [line["round"] for line in load_run(run).history] == [2, 3, 4]
    back = answer("rollback", run, "--round", 3, "--out", earlier)
    assert (back["run"], back["best_round"]) == (str(earlier), 3)
    data = load_dataset(today)
    user = data.user_ids.filter(pl.Series(data.side == PRIVATE))[0]
    assert answer("forget", run, "--user", user)["erased"] > 0
    assert answer("adapt", "--continue", earlier, today, "--out", tmp_path / "again", *ROUNDS)["rounds"] == 2


@pytest.mark.slow
def test_another_foundation(world: World, tmp_path: Path) -> None:
    newer, run = tmp_path / "newer", tmp_path / "run"
    fedpa("pretrain", world.dataset, "--out", newer, "--set", "epochs=2", "--set", "hidden=[24,16]")
    going_on = ("adapt", "--continue", world.run, newer, world.dataset, "--out", run, *ROUNDS)
    refused = fedpa(*going_on, code=2).stderr
    assert "its adapters belong to foundation" in refused
    assert "--migrate" in refused
    dropped = answer(*going_on, "--migrate")["continues"]["dropped"]
    assert {"name", "was", "now", "why"} == dropped[0].keys()
    assert load_run(run).config["foundation"]["path"] == str(newer)


def test_what_does_not_go_together(world: World, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "out")
    assert "add --continue RUN" in fedpa("adapt", "--migrate", world.foundation, world.dataset, *out, code=2).stderr
    assert "expected --continue RUN DATASET" in fedpa("adapt", "--continue", world.run, *out, code=2).stderr
    both = fedpa("adapt", "--resume", world.run, "--continue", world.run, code=2)
    assert "--resume: the run knows all else" in both.stderr
    more = fedpa("adapt", "--resume", world.run, "--shards", 4, code=2)
    assert "--resume: the run knows all else" in more.stderr
    own = fedpa("adapt", "--continue", world.run, world.dataset, *out, "--seed", 1, code=2).stderr
    assert "--seed: " in own
    assert "goes on with its own" in own
    assert "does not keep round 7" in fedpa("rollback", world.run, "--round", 7, *out, code=2).stderr
    assert (
        "is neither a number nor a date"
        in fedpa("prepare", "kuairand-pure", "--raw", world.raw, *out, "--until", "tomorrow", code=2).stderr
    )
    assert not (tmp_path / "out").exists()
