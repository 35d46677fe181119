"""Runs that go on: to the bit where nothing changed, and by names and ids where something did."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from fedpa import durable
from fedpa.adaptation import adapt, resume
from fedpa.continuing.rollback import kept_rounds, rollback
from fedpa.continuing.run import continue_run
from fedpa.data.dataset import PRIVATE, Dataset
from fedpa.data.prepare import prepare
from fedpa.errors import ArtifactError, ConfigError
from fedpa.federation.coordinator import saved_round
from fedpa.models.pretrain import pretrain
from fedpa.models.wrap.wrapping import wrap
from fedpa.run import Run, load_run
from fedpa.unfinished import room_of
from later import GROUP, PLAIN, Later, later
from models.wrap.modules import DCN, made

SPECS: dict[str, dict[str, Any]] = {
    "fedpa": {},
    "fedpa-moments": {
        "method": "fedpa",
        "keep_optimizer": True,
        "server_optimizer": "adam",
        "server_lr": 0.02,
        "table_mean": "touched",
        "participation": 0.7,
    },
    "fedavg": {"server_optimizer": "momentum", "keep_optimizer": True},
    "pfedrec": {"keep_optimizer": True, "server_optimizer": "adam", "server_lr": 0.02},
    "gpfedrec": {"participation": 0.7},
    "fedrap": {},
    "ditto": {},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Later:
    return later(tmp_path_factory)


@pytest.fixture(scope="module")
def run(world: Later) -> Run:
    """A run that tests only read."""
    return world.run(world.folder / "run")


@pytest.fixture(scope="module")
def next_run(world: Later, run: Run) -> Run:
    """The same a while later, without any round."""
    return continue_run(run, world.today, out=world.folder / "next", rounds=0)


def settings_of(spec: str) -> dict[str, Any]:
    return {"method": spec} | SPECS[spec] | {"lr": 0.02}


def private(data: Dataset) -> list[int]:
    return data.user_ids.filter(pl.Series(data.side == PRIVATE)).to_list()


def files(run: Run) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run.path.glob("*.safetensors")}


@pytest.mark.parametrize("spec", SPECS)
def test_the_same_data_and_no_round_give_the_same_scores(world: Later, tmp_path: Path, spec: str) -> None:
    run = world.run(tmp_path / "run", **settings_of(spec))
    same = continue_run(run, world.first, out=tmp_path / "same", rounds=0)
    assert (same.scores == run.scores).all()
    assert files(same) == files(run)
    assert same.history[0]["val"] == run.history[run.summary["best_round"]]["val"]


@pytest.mark.parametrize("spec", SPECS)
def test_rounds_of_two_runs_are_those_of_one(world: Later, tmp_path: Path, spec: str) -> None:
    """What optimisers, devices and the server keep goes on too, and no draw is made twice, in any number of shards."""
    settings = settings_of(spec)
    whole = rollback(world.run(tmp_path / "whole", **settings | {"rounds": 4}), 4, out=tmp_path / "four")
    half = rollback(world.run(tmp_path / "half", **settings | {"rounds": 2}), 2, out=tmp_path / "two")
    rest = continue_run(half, world.first, out=tmp_path / "rest", rounds=2, shards=3)
    assert [line["round"] for line in rest.history] == [2, 3, 4]
    assert files(rollback(rest, 4, out=tmp_path / "again")) == files(whole)
    assert [line["val"] for line in rest.history[1:]] == [line["val"] for line in whole.history[3:]]


def test_what_became_of_everybody_is_noted(world: Later, run: Run, next_run: Run) -> None:
    noted = next_run.summary["continues"]
    users = len(private(world.today))
    assert noted["users"] == {"known": users - 4, "new": 4, "left": 3, "with_state": users - 4}
    assert noted["items"] == {"known": 57, "new": 3, "left": 0}
    assert noted["changed"] == {"follow_user_num_range": 0, GROUP: 3}
    assert (noted["dropped"], noted["began"]) == ([], [])
    assert noted["run"] == str(run.path)
    assert (noted["best_round"], noted["first_round"]) == (run.summary["best_round"], 3)
    assert next_run.config["continues"] == noted


def test_known_users_keep_what_is_theirs_and_new_ones_begin(world: Later, run: Run, next_run: Run) -> None:
    before, today = private(world.first), private(world.today)
    old, new = (one._store().read(np.arange(len(ids))) for one, ids in ((run, before), (next_run, today)))
    for place, user in enumerate(today):
        if user in world.new_users:
            assert not new[place].any()
        else:
            assert new[place].any()
            assert (new[place] == old[before.index(user)]).all()
    assert not set(world.left) & set(today)


def test_shared_parameters_go_by_name_groups_by_value_and_items_by_id(world: Later, run: Run, next_run: Run) -> None:
    old, new = run.server.named(), next_run.server.named()
    assert old.keys() == new.keys()
    biased = 0
    for name, value in new.items():
        if name != "item_bias":
            assert torch.equal(value, old[name])
    for number, item in enumerate(world.today.item_ids.to_list()):
        row = new["item_bias"][number]
        if item in world.new_items:
            assert not row.any()
        else:
            assert torch.equal(row, old["item_bias"][world.first.item_ids.to_list().index(item)])
            biased += bool(row.any())
    assert biased > 30


def test_a_user_whose_group_changed_has_the_new_groups_parameters(world: Later, run: Run, next_run: Run) -> None:
    user = world.moved[0]
    values = {}
    for one in (run, next_run):
        shard, number = one.recommender.shard, one.dataset.user_index(user)
        local = np.searchsorted(shard.rows.users, [number])
        flat = shard.weights_of(local, one.server.state)[0]
        values[one] = {name: flat[span.begin : span.end] for name, span in one.model.layout.places.items()}
        group = shard.assembly.groups_of(number, one.dataset)[GROUP]
        name = f"layers.0.group.{GROUP}.b"
        assert torch.equal(values[one][name], one.server.named()[name][group].flatten())
    assert not torch.equal(values[run][name], values[next_run][name])
    assert torch.equal(values[run]["layers.0.user.b"], values[next_run]["layers.0.user.b"])


def test_values_of_groups_are_found_by_their_names(world: Later, run: Run, tmp_path: Path) -> None:
    """A data set that was not prepared alike has another vocabulary, so that rows of a group's table move."""
    assert world.source.users is not None
    towns = world.source.users.with_columns(
        pl.when(pl.col("user_id") % 3 == 0).then(pl.lit("0")).otherwise(GROUP).alias(GROUP)
    )
    other = prepare(dataclasses.replace(world.source, users=towns), tmp_path / "other")
    foundation = pretrain(other, **PLAIN)
    moved = continue_run(run, other, foundation=foundation, migrate=True, out=tmp_path / "moved", rounds=0)
    names = [[*map(str, data.manifest["groups"][GROUP]["vocabulary"])] for data in (world.first, other)]
    assert names[0] != names[1]
    table = f"layers.0.group.{GROUP}.b"
    old, new = run.server.named()[table], moved.server.named()[table]
    for row, value in enumerate(names[1]):
        assert torch.equal(new[row], old[names[0].index(value)] if value in names[0] else torch.zeros_like(new[row]))
    assert "0" in names[1]


def test_it_learns_from_new_rows(world: Later, run: Run, next_run: Run, tmp_path: Path) -> None:
    learnt = continue_run(run, world.today, out=tmp_path / "learnt", rounds=2)
    assert learnt.history[0]["val"] == next_run.history[0]["val"]
    assert [line["round"] for line in learnt.history] == [3, 4, 5]
    assert learnt.summary["best_round"] > 3
    assert learnt.summary["splits"]["val"]["logloss"] < next_run.summary["splits"]["val"]["logloss"]
    again = continue_run(learnt, world.today, out=tmp_path / "again")
    assert [line["round"] for line in again.history] == [5, 6, 7]
    assert learnt.recommender.recommend(world.new_users[0], 3).items


def test_own_copies_of_shared_rows(world: Later, tmp_path: Path) -> None:
    """A device that scores with its own copy keeps it; of items that it had not met it has what the server has."""
    run = world.run(tmp_path / "run", method="pfedrec", rounds=2)
    following = continue_run(run, world.today, out=tmp_path / "next", rounds=0)
    old_ids, ids = world.first.item_ids.to_list(), world.today.item_ids.to_list()
    tables, met = {}, {}
    for one in (run, following):
        shard = one.recommender.shard
        number = one.dataset.user_index(world.moved[0])
        local = np.searchsorted(shard.rows.users, [number])
        weights = shard.weights_of(local, one.server.state)
        blocks, _ = shard.assembly.catalogue(weights, local, np.array([number]), one.server.state)
        tables[one] = blocks["items"][0]
        touched = shard.touched["items"]
        begin = touched.begin[local[0]]
        met[one] = set(touched.ids[begin : begin + touched.trained[local[0]]].tolist())
    server = following.server.named()["items"]
    met_before = {old_ids[row] for row in met[run]}
    seen, unseen = 0, 0
    for row in met[following]:
        if ids[row] in met_before:
            own = tables[run][old_ids.index(ids[row])]
            torch.testing.assert_close(tables[following][row], own, rtol=0, atol=1e-6)
            seen += not torch.equal(own, run.server.named()["items"][old_ids.index(ids[row])])
        else:
            torch.testing.assert_close(tables[following][row], server[row], rtol=0, atol=1e-6)
            unseen += 1
    assert min(seen, unseen) > 0


def test_a_new_version_of_the_foundation_is_refused_or_migrated_to(world: Later, run: Run, tmp_path: Path) -> None:
    newer = pretrain(world.today, out=tmp_path / "newer", **PLAIN | {"epochs": 3})
    with pytest.raises(ArtifactError, match=f"belong to foundation {run.config['foundation']['hash'][:12]}, found"):
        continue_run(run, world.today, foundation=newer)
    moved = continue_run(
        run, world.today, foundation=newer, foundation_path=tmp_path / "newer", migrate=True, out=tmp_path / "moved"
    )
    assert moved.config["foundation"] == {"path": str(tmp_path / "newer"), "hash": newer.hash}
    assert moved.summary["continues"]["dropped"] == []
    old, new = run.server.named(), load_run(moved.path).server.named()
    start = continue_run(run, world.today, foundation=newer, migrate=True, rounds=0, out=tmp_path / "start").server
    assert torch.equal(start.named()["layers.0.gate.0.weight"], old["layers.0.gate.0.weight"])
    change = old["head.weight"] - world.foundation.model.head.weight
    torch.testing.assert_close(start.named()["head.weight"], newer.model.head.weight + change)
    assert new.keys() == old.keys()


def test_a_foundation_of_another_width_takes_what_fits(
    world: Later, run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wider = pretrain(world.today, **PLAIN | {"hidden": (24, 16)})
    with caplog.at_level(logging.WARNING):
        moved = continue_run(run, world.today, foundation=wider, migrate=True, rounds=1, out=tmp_path / "moved")
    dropped = {one["name"]: one for one in moved.summary["continues"]["dropped"]}
    narrow = run.model.layout.places["layers.0.user.b"].size // 4
    assert dropped["layers.0.user.b"] == {
        "name": "layers.0.user.b",
        "was": [4, narrow],
        "now": [4, 24],
        "why": "has another shape",
    }
    assert "layers.0.user.b has another shape: was [4, " in caplog.text
    assert "item_bias" not in dropped
    assert "layers.0.user.a" not in dropped
    known = torch.from_numpy(np.isin(world.today.item_ids.to_numpy(), world.new_items))
    start = continue_run(run, world.today, foundation=wider, migrate=True, rounds=0, out=tmp_path / "start")
    assert start.server.named()["item_bias"][~known].any()


def test_other_settings_are_refused_where_they_do_not_fit(world: Later, run: Run, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"of its parameters do not fit today's, for instance .*has another shape"):
        continue_run(run, world.today, rank=2)
    moved = continue_run(run, world.today, rank=2, rounds=0, migrate=True, out=tmp_path / "moved")
    assert {one["name"] for one in moved.summary["continues"]["dropped"]} >= {"layers.0.user.a", "layers.0.user.b"}
    assert moved.config["settings"]["rank"] == 2
    faster = continue_run(run, world.today, lr=0.5, rounds=0, out=tmp_path / "faster")
    assert faster.config["settings"]["lr"] == 0.5


def test_what_one_optimiser_of_the_server_keeps_is_not_given_to_another(world: Later, tmp_path: Path) -> None:
    run = world.run(tmp_path / "run", server_optimizer="momentum", server_lr=0.5)
    for optimizer, carried in (("momentum", True), ("adam", False), ("mean", False)):
        out = tmp_path / optimizer
        continue_run(run, world.first, out=out, rounds=0, server_optimizer=optimizer)
        assert any(name.startswith("moments.") for name in saved_round(out, 3)[1]) == carried


def test_a_start_is_on_the_disk_before_the_first_round(
    world: Later, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room, synced = room_of(tmp_path / "next"), list[bool]()
    plain = durable.sync_folder

    def noting(path: Path) -> None:
        plain(path)
        if path == room:
            synced.append((room / "config.yaml").exists())

    monkeypatch.setattr(durable, "sync_folder", noting)
    continue_run(run, world.today, out=tmp_path / "next", rounds=0)
    assert any(synced)


def test_options_are_refused_before_anything_is_written(world: Later, run: Run, tmp_path: Path) -> None:
    for driver, wrong in (("ray", {"threads": 0}), ("ray", {"deadline": -1.0}), ("local", {"threads": 2})):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            continue_run(run, world.today, out=tmp_path / "next", driver=driver, **wrong)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_go_on_is_refused(world: Later, run: Run, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="already exists"):
        continue_run(run, world.today, out=run.path)
    with pytest.raises(ConfigError, match="unknown setting 'rate'"):
        continue_run(run, world.today, rate=1)
    counters = adapt(None, world.first, method="two-counters", out=tmp_path / "counters")
    with pytest.raises(ConfigError, match="method two-counters has no federation"):
        continue_run(counters, world.today)
    other = prepare(world.source, tmp_path / "other")
    with pytest.raises(ArtifactError, match="features are encoded otherwise"):
        continue_run(run, other)
    assert not [*tmp_path.glob("*.unfinished")]


def test_a_start_that_was_cut_short_is_none_and_a_whole_one_resumes(
    world: Later, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = continue_run(run, world.today, out=tmp_path / "whole", rounds=2)

    def broken(*_: Any) -> None:
        raise OSError(5, "broken")

    with monkeypatch.context() as patch:
        patch.setattr("fedpa.continuing.start.write_config", broken)
        patch.setattr("fedpa.continuing.start.Coordinator.begin_at", broken)
        with pytest.raises(ArtifactError, match="could not be written"):
            continue_run(run, world.today, out=tmp_path / "cut", rounds=2)
    assert not [*tmp_path.glob("cut*")]
    with monkeypatch.context() as patch:
        patch.setattr("fedpa.federation.node.Node.train", broken)
        with pytest.raises(ArtifactError, match="could not be written"):
            continue_run(run, world.today, out=tmp_path / "cut", rounds=2)
    again = resume(tmp_path / "cut")
    assert files(again) == files(whole)
    assert again.summary["continues"] == whole.summary["continues"]


def test_forgotten_users_stay_forgotten(world: Later, tmp_path: Path) -> None:
    run = continue_run(
        world.run(tmp_path / "run", keep_optimizer=True),
        world.today,
        out=tmp_path / "next",
        rounds=2,
        keep_rounds=3,
        shards=2,
    )
    user, other = world.moved[0], world.moved[1]
    ids = private(world.today)
    generations = sorted((run.path / "checkpoints").glob("node-*/*"))
    assert len(generations) == 6
    assert run.forget(user)["erased"] > 0
    for number in (3, 4, 5):
        earlier = rollback(run, number, out=tmp_path / f"back-{number}")
        rows = earlier._store().read(np.arange(len(ids)))
        assert not rows[ids.index(user)].any()
        assert rows[ids.index(other)].any()
    following = continue_run(run, world.today, out=tmp_path / "after", rounds=0)
    assert not following._store().read(np.array([ids.index(user)])).any()


def test_what_a_forgotten_user_was_to_receive_is_gone_too(world: Later, tmp_path: Path) -> None:
    run = world.run(tmp_path / "run", method="gpfedrec", rounds=2)
    user, other = (run.dataset.user_index(each) for each in world.moved[:2])
    rounds = kept_rounds(run)

    def receivers(number: int) -> set[int]:
        return set(saved_round(run.path, number)[1]["downlink.items.users"].tolist())

    before = {number: receivers(number) for number in rounds}
    assert {user, other} <= before[2]
    run.forget(world.moved[0])
    assert {number: receivers(number) for number in rounds} == {n: users - {user} for n, users in before.items()}
    assert continue_run(run, world.today, out=tmp_path / "next", rounds=1).summary["continues"]["users"]["known"] == 87


def test_a_module_of_ones_own_goes_on_too(world: Later, tmp_path: Path) -> None:
    wrapped = wrap(made(DCN, world.first), ["cross.*"], train=["head"])
    run = adapt(wrapped, world.first, out=tmp_path / "run", rounds=2, patience=0, lr=0.05)
    same = continue_run(run, world.first, out=tmp_path / "same", rounds=0)
    assert (same.scores == run.scores).all()
    following = continue_run(run, world.today, out=tmp_path / "next", rounds=1)
    assert following.config["foundation"] == {"path": None, "hash": wrapped.hash}
    assert following.summary["continues"]["users"]["with_state"] == 87
