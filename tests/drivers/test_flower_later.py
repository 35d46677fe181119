"""Runs on Flower that go on from earlier ones with later data: what one process makes of both, to the bit."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from drivers.flower_grid import Fault, HereGrid, Stopped, hurry
from fedpa.continuing.run import continue_run
from fedpa.data.shard import SERVER, node_folder, shard
from fedpa.drivers.flower.job import run_on_nodes
from fedpa.drivers.flower.options import Options
from fedpa.errors import ArtifactError, ConfigError, FedpaError
from fedpa.models.pretrain import pretrain
from fedpa.origin import run_id
from fedpa.run import Run, load_run
from later import PLAIN, QUICK, Later, later

NODES = 2
SPECS: dict[str, dict[str, Any]] = {
    "fedpa": {"item_counts": 5, "participation": 0.7},
    "fedpa-moments": {
        "keep_optimizer": True,
        "server_optimizer": "adam",
        "server_lr": 0.02,
        "table_mean": "touched",
    },
    "ditto": {},
    "fedrap": {},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Later:
    return later(tmp_path_factory)


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)


class Site:
    """A server's folder and its nodes' stores, with the data of two days."""

    def __init__(self, world: Later, folder: Path) -> None:
        self.world, self.folder = world, folder
        self.first = shard(world.first, folder / "first", shards=NODES)
        self.today = shard(world.today, folder / "today", like=folder / "first")

    def grid(self, shards: dict[str, Path], fault: Fault, foundation: Path | None) -> HereGrid:
        configs = {
            10 + node: {
                "dataset": shards[node_folder(node)],
                "foundation": foundation or self.world.foundation_path,
                "store": self.folder / f"store-{node}",
            }
            for node in range(NODES)
        }
        return HereGrid(configs, fault)

    def run(
        self,
        name: str,
        shards: dict[str, Path],
        *,
        set_: dict[str, Any],
        fault: Fault = lambda node, kind, count: "",
        foundation: Path | None = None,
        least: int = NODES,
        **config: Any,
    ) -> Run:
        out = self.folder / name
        settings = " ".join(f"{key}={value}" for key, value in set_.items())
        options = {"dataset": str(shards[SERVER]), "out": str(out), "settings": settings, "min-nodes": least}
        if "continue" not in config or foundation is not None:
            options["foundation"] = str(foundation or self.world.foundation_path)
        run_on_nodes(self.grid(shards, fault, foundation), Options.of(options | config))
        return load_run(out)

    def before(self, spec: str = "fedpa") -> Run:
        return self.run("run", self.first, set_=QUICK | SPECS[spec], method=method_of(spec))

    def after(self, name: str = "next", **more: Any) -> Run:
        return self.run(name, self.today, **{"set_": {"rounds": 2}, "continue": str(self.folder / "run"), **more})

    def nodes(self, after: Run) -> list[Run]:
        """The nodes' parts of a run."""
        return [load_run(self.folder / f"store-{node}" / run_id(after.config)) for node in range(NODES)]


def method_of(spec: str) -> str:
    return spec.partition("-")[0]


def by_user(*runs: Run) -> dict[int, bytes]:
    """What every user's device keeps, by the user's id."""
    found: dict[int, bytes] = {}
    for run in runs:
        rows = run._store().read(np.arange(len(run.rows.users)))
        found |= dict(zip(run.dataset.user_ids.gather(run.rows.users).to_list(), map(bytes, rows), strict=True))
    return found


def shared(run: Run) -> bytes:
    return (run.path / "shared.safetensors").read_bytes()


@pytest.fixture
def site(world: Later, tmp_path: Path) -> Site:
    return Site(world, tmp_path)


@pytest.mark.parametrize("spec", SPECS)
def test_two_days_on_nodes_equal_two_days_in_one_process(site: Site, tmp_path: Path, spec: str) -> None:
    run = site.before(spec)
    after = site.after()
    local = site.world.run(tmp_path / "local", **{"method": method_of(spec)} | SPECS[spec])
    expected = continue_run(local, site.world.today, out=tmp_path / "local-next", rounds=2)
    assert shared(run) == shared(local)
    assert [line["round"] for line in after.history] == [3, 4, 5]
    assert shared(after) == shared(expected)
    assert by_user(*site.nodes(after)) == by_user(expected)
    scores = pl.concat(run.predictions() for run in site.nodes(after)).sort("user", "time", "item")
    assert scores.equals(expected.predictions().sort("user", "time", "item"))


def test_what_became_of_everybody_is_noted_where_it_is_known(site: Site) -> None:
    site.before()
    after = site.after()
    noted = after.config["continues"]
    assert noted["items"] == {"known": 57, "new": 3, "left": 0}
    assert "users" not in noted
    facts = [run.summary["continues"]["users"] for run in site.nodes(after)]
    assert {key: sum(each[key] for each in facts) for key in ("new", "left")} == {"new": 4, "left": 3}
    assert all((site.folder / f"store-{node}" / noted["id"] / "summary.json").exists() for node in range(NODES))


def test_a_server_that_was_stopped_goes_on(site: Site) -> None:
    site.before()
    undisturbed = shared(site.after("alone"))
    for kind, count in (("start", 1), ("round", 1), ("round", 2), ("finish", 1)):
        with pytest.raises(Stopped):
            site.after(fault=lambda node, k, c: "stop" if (node, k, c) == (11, kind, count) else "")  # noqa: B023
    assert shared(site.after()) == undisturbed


def test_a_node_that_was_no_part_of_the_earlier_run_begins_anew(
    site: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    site.before()
    shutil.rmtree(site.folder / "store-1")
    with caplog.at_level(logging.WARNING):
        after = site.after(set_={"rounds": 0})
    assert "is not here: users begin as new ones" in caplog.text  # on the node
    assert "node 1: was no part of the earlier run" in caplog.text  # on the server
    kept, nothing = (by_user(run) for run in site.nodes(after))
    assert sum(map(any, kept.values())) > len(kept) / 2
    assert not any(map(any, nothing.values()))


def test_a_node_on_which_the_earlier_run_was_not_finished_is_left_out_and_says_why(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    site.run(
        "run", site.first, set_=QUICK, deadline=1.0, fault=lambda node, k, c: "lost" * (node == 11 and k == "finish")
    )
    (unfinished,) = [path for path in (site.folder / "store-1").iterdir() if path.is_dir()]
    if not unfinished.name.endswith(".unfinished"):  # the node's own part was done
        unfinished.rename(unfinished.with_name(unfinished.name + ".unfinished"))
    with caplog.at_level(logging.WARNING):
        after = site.after(least=1)
    assert "was not finished on this node" in caplog.text
    assert {line.get("nodes") for line in after.history[1:]} == {1}


def test_another_foundation_is_refused_or_migrated_to(site: Site, tmp_path: Path) -> None:
    site.before()
    pretrain(site.world.first, out=tmp_path / "other", **PLAIN | {"seed": 7})
    with pytest.raises(ArtifactError, match="its adapters belong to foundation"):
        site.after(foundation=tmp_path / "other")
    after = site.after(foundation=tmp_path / "other", migrate=True)
    assert after.foundation is not None
    local = site.world.run(tmp_path / "local", **SPECS["fedpa"])
    expected = continue_run(
        local,
        site.world.today,
        out=tmp_path / "local-next",
        foundation=after.foundation,
        foundation_path=tmp_path / "other",
        migrate=True,
        rounds=2,
    )
    assert shared(after) == shared(expected)
    assert by_user(*site.nodes(after)) == by_user(expected)


def test_what_does_not_go_together_is_refused(site: Site) -> None:
    site.before()
    for given in ({"method": "fedavg"}, {"preset": "reference"}, {"seed": 3}):
        with pytest.raises(ConfigError, match=f"{next(iter(given))} is .*, but a run goes on with its own"):
            site.after(**given)
    with pytest.raises(ConfigError, match="migrate is for runs that go on"):
        Options.of({"dataset": "a", "out": "b", "migrate": True})
    with pytest.raises(FedpaError, match="nowhere: expected a run folder"):
        site.after(**{"continue": str(site.folder / "nowhere")})
    site.after()
    site.run("other", site.first, set_=QUICK | {"lr": 0.01})
    with pytest.raises(ArtifactError, match=r"is a run with another settings, earlier run \(continue\)"):
        site.after(**{"continue": str(site.folder / "other")})


def test_a_day_without_its_yesterday_says_what_is_missing(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    site.before()
    shutil.rmtree(site.folder / "first" / node_folder(1))
    with caplog.at_level(logging.ERROR):
        site.after(least=1)
    assert str(site.folder / "first" / node_folder(1)) in caplog.text


def test_a_stopped_run_needs_nothing_of_yesterday_and_no_word_of_migration(site: Site) -> None:
    site.before()
    changed = {"rounds": 2, "rank": 2}
    with pytest.raises(ArtifactError, match="do not fit today's"):
        site.after(set_=changed)
    stop: Fault = lambda node, kind, count: "stop" if (node, kind, count) == (11, "round", 2) else ""  # noqa: E731
    with pytest.raises(Stopped):
        site.after(set_=changed, migrate=True, fault=stop)
    for node in range(NODES):
        shutil.rmtree(site.first[node_folder(node)])
    after = site.after(set_=changed)
    assert [line["nodes"] for line in after.history[1:]] == [NODES, NODES]
    assert all("users" in run.config["continues"] for run in site.nodes(after))


def test_a_run_that_was_not_made_on_flower_is_refused(site: Site, tmp_path: Path) -> None:
    site.world.run(tmp_path / "local")
    with pytest.raises(ArtifactError, match="was not made on Flower"):
        site.after(**{"continue": str(tmp_path / "local")})


def test_lines_of_the_new_run_are_told_to_the_nodes(site: Site) -> None:
    site.before()
    after = site.after()
    for run in site.nodes(after):
        assert run.history == after.history
        assert json.loads((run.path / "summary.json").read_text())["best_round"] == after.summary["best_round"]
