"""The loop over letters: what is lost, repeated, late or new on the way does not change what it must not change."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import safetensors.numpy
import torch

from drivers.flower_grid import Fault, HereGrid, Stopped, hurry
from drivers.flower_world import SETTINGS, World, world
from fedpa.data.shard import SERVER
from fedpa.drivers.flower.job import run_on_nodes
from fedpa.drivers.flower.options import Options
from fedpa.errors import ArtifactError, ConfigError, DataError, FedpaError
from fedpa.federation.coordinator import Coordinator, saved_round
from fedpa.run import load_run


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> World:
    return world(tmp_path_factory, 3)


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)


def options(made: World, out: Path, **changes: Any) -> Options:
    text = " ".join(f"{key}={value}" for key, value in (SETTINGS | changes.pop("set", {})).items())
    config = {
        "dataset": str(made.shards[SERVER]),
        "foundation": str(made.made.foundation_path),
        "out": str(out),
        "settings": text,
        "min-nodes": 3,
    }
    return Options.of(config | {key.replace("_", "-"): value for key, value in changes.items()})


def grid(made: World, stores: Path, fault: Fault = lambda node, kind, count: "", nodes: int = 3) -> HereGrid:
    """Nodes 10, 11 and 12."""
    configs = {10 + node: made.config(node) | {"store": stores / f"store-{node}"} for node in range(nodes)}
    return HereGrid(configs, fault)


def shared(run: Path) -> bytes:
    return (run / "shared.safetensors").read_bytes()


def kept(stores: Path, node: int) -> Path:
    """The run of a node."""
    (found,) = [path for path in (stores / f"store-{node}").iterdir() if path.is_dir()]
    assert not found.name.endswith(".unfinished")
    return found


def summary(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "summary.json").read_text())
    return found


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_nodes_equal_one_process(three: World, tmp_path: Path) -> None:
    here = grid(three, tmp_path)
    run_on_nodes(here, options(three, tmp_path / "run"))
    local = three.local()
    assert shared(tmp_path / "run") == shared(local)
    whole = safetensors.numpy.load_file(local / "personal.safetensors")["personal"]
    parts = [safetensors.numpy.load_file(kept(tmp_path, n) / "personal.safetensors")["personal"] for n in range(3)]
    assert np.array_equal(np.concatenate(parts), whole)
    assert summary(tmp_path / "run")["private_users"] == len(whole)
    assert load_run(tmp_path / "run").server.named().keys() == load_run(local).server.named().keys()
    # One letter a round and node, and one more that only scores.
    assert [kind for kind, _ in here.sent].count("round") == 3 * (SETTINGS["rounds"] + 1)


def test_a_nodes_run_scores_its_users_as_one_process_does(three: World, tmp_path: Path) -> None:
    """Item counts are everybody's, not those of the node's own users."""
    run_on_nodes(grid(three, tmp_path), options(three, tmp_path / "run"))
    whole = load_run(three.local()).predictions()
    runs = [load_run(kept(tmp_path, node)) for node in range(3)]
    assert pl.concat(run.predictions() for run in runs).equals(whole)
    one = runs[0]
    assert 0 < one.evaluate("test")["gauc"] < 1
    forgotten = one.dataset.user_ids.gather(one.rows.users)[
        int(np.flatnonzero(one._store().read(np.arange(5)).any(1))[0])
    ]
    assert one.forget(forgotten)["erased"] > 0
    with pytest.raises(DataError, match="cannot be counted here"):
        one.recommend(forgotten)
    damaged = kept(tmp_path, 0) / "tally.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match=r"tally\.safetensors: cannot be read"):
        load_run(kept(tmp_path, 0)).predictions()


def test_nothing_personal_is_in_an_answer(three: World, tmp_path: Path) -> None:
    here = grid(three, tmp_path)
    run_on_nodes(here, options(three, tmp_path / "run"))
    said = b"".join(reply.content.array_records["fedpa.arrays"]["block"].data for _, reply in here.sent)
    rows = safetensors.numpy.load_file(kept(tmp_path, 0) / "personal.safetensors")["personal"]
    trained = rows[np.abs(rows).sum(1) > 0]
    assert len(trained) > 10
    for row in trained:
        some = row[row != 0][:2]
        assert some.tobytes() not in said
    words = "".join(str(reply.content.config_records["fedpa"]["letter"]) for _, reply in here.sent)
    assert str(tmp_path) not in words and str(three.folder) not in words


FAULTS: dict[str, Fault] = {
    "lost": lambda node, kind, count: "lost" if node == 11 and count in (1, 3) else "",
    "untaken": lambda node, kind, count: "untaken" if node == 10 and count == 1 else "",
    "crashed": lambda node, kind, count: "crashed" if node == 12 and count in (1, 2, 4) else "",
    "offline": lambda node, kind, count: "offline" if count == 2 else "",
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_is_lost_on_the_way_is_asked_again(three: World, tmp_path: Path, name: str) -> None:
    here = grid(three, tmp_path, FAULTS[name])
    run_on_nodes(here, options(three, tmp_path / "run"))
    assert shared(tmp_path / "run") == shared(three.local())
    assert summary(tmp_path / "run")["answers_lost"] == {}


@pytest.mark.parametrize("kind", ["prepare", "start", "round", "finish"])
def test_a_server_that_was_stopped_goes_on(three: World, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "run"
    for _ in range(2):
        stopping = grid(three, tmp_path, lambda node, asked, count: "stop" if (node, asked) == (11, kind) else "")
        with pytest.raises(Stopped):
            run_on_nodes(stopping, options(three, out))
    later = grid(three, tmp_path, lambda node, asked, count: "stop" if (asked, count) == ("round", 3) else "")
    with contextlib.suppress(Stopped):
        run_on_nodes(later, options(three, out))
    run_on_nodes(grid(three, tmp_path), options(three, out))
    assert shared(out) == shared(three.local())


def test_a_late_node_is_left_out_and_counted(three: World, tmp_path: Path) -> None:
    def fault(node: int, kind: str, count: int) -> str:
        return "untaken" if node == 11 and kind == "round" and count > 1 else ""

    out = tmp_path / "run"
    run_on_nodes(grid(three, tmp_path, fault), options(three, out, deadline=1, min_nodes=2))
    assert [line.get("nodes") for line in lines(out)] == [None, 3, 2]
    assert [line.get("late") for line in lines(out)] == [None, 0, 1]
    assert summary(out)["answers_lost"]["late"] == 2
    assert shared(out) != shared(three.local())


@pytest.mark.parametrize(("fault", "reason"), [("torn", "header"), ("older", "late")])
def test_an_answer_that_cannot_be_read_is_refused_and_counted_by_reason(
    three: World, tmp_path: Path, fault: str, reason: str
) -> None:
    def spoil(node: int, kind: str, count: int) -> str:
        return fault if node == 11 and kind == "round" and count >= 2 else ""

    out, metrics = tmp_path / "run", tmp_path / "fedpa.prom"
    run_on_nodes(grid(three, tmp_path, spoil), options(three, out, min_nodes=2, metrics_file=str(metrics)))
    assert [(line["nodes"], line["late"], line["refused"]) for line in lines(out)[1:]] == [
        (3, 0, {}),
        (2, 0, {reason: 1}),
    ]
    assert f'fedpa_refused_uploads_total{{reason="{reason}",run=' in metrics.read_text()
    (tmp_path / "without").mkdir()
    left_out = grid(three, tmp_path / "without", lambda *sent: "untaken" if spoil(*sent) else "")
    run_on_nodes(left_out, options(three, tmp_path / "other", min_nodes=2, deadline=1))
    assert shared(out) == shared(tmp_path / "other")


def test_item_counts_that_cannot_be_read_are_refused_and_counted(three: World, tmp_path: Path) -> None:
    out = tmp_path / "run"
    spoil = grid(three, tmp_path, lambda node, kind, count: "torn" if (node, kind) == (11, "prepare") else "")
    run_on_nodes(spoil, options(three, out, min_nodes=2))
    assert lines(out)[1]["refused"] == {"header": 1}


def test_a_node_that_comes_later_starts_from_nothing(three: World, tmp_path: Path) -> None:
    here = grid(three, tmp_path, nodes=2)

    def fault(node: int, kind: str, count: int) -> str:
        if kind == "round" and node == 10 and count == 2:
            here.configs[12] = three.config(2) | {"store": tmp_path / "store-2"}
            here.starts[12] = 0
        return ""

    here.fault = fault
    out = tmp_path / "run"
    run_on_nodes(here, options(three, out, min_nodes=2, set={"rounds": 4}))
    assert [line.get("nodes") for line in lines(out)] == [None, 2, 2, 3, 3]
    assert summary(kept(tmp_path, 2))["private_users"] > 0
    assert "prepare" not in [kind for kind, reply in here.sent if reply.metadata.src_node_id == 12]


def test_a_node_that_lost_its_folder_starts_again(three: World, tmp_path: Path) -> None:
    def fault(node: int, kind: str, count: int) -> str:
        if node == 12 and kind == "round" and count == 1:
            lose(tmp_path, 2)
        return ""

    out = tmp_path / "run"
    run_on_nodes(grid(three, tmp_path, fault), options(three, out, min_nodes=2))
    assert summary(out)["answers_lost"] == {"failed": 1}
    assert [line.get("nodes") for line in lines(out)] == [None, 2, 3]


def lose(tmp_path: Path, node: int) -> None:
    """The node's disk is a new one."""
    for path in (tmp_path / f"store-{node}").glob("*.unfinished"):
        shutil.rmtree(path)


def test_a_node_that_lost_its_disk_goes_on_from_nothing(
    three: World, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the end it has nothing any more of the best round, and keeps the earliest that it has."""
    monkeypatch.setattr(Coordinator, "_selected", lambda self, values: -abs(self.number - 2))

    def fault(node: int, kind: str, count: int) -> str:
        if (node, kind, count) == (12, "round", 3):
            lose(tmp_path, 2)
        return ""

    out, more = tmp_path / "run", {"rounds": 7}
    run_on_nodes(grid(three, tmp_path, fault), options(three, out, min_nodes=2, set=more))
    assert [line.get("nodes") for line in lines(out)] == [None, 3, 3, 2, 3, 3, 3, 3]
    assert "node 2: lost what its devices kept of round 2, went on from round 0" in caplog.text
    assert summary(out)["best_round"] == 2
    assert summary(out)["nodes_untold"] == []
    assert load_run(kept(tmp_path, 2)).predictions().height > 0


def test_a_node_that_lost_its_disk_does_not_keep_a_stopped_run_from_going_on(
    three: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out, more = tmp_path / "run", {"rounds": 4}
    stop: Fault = lambda node, kind, count: "stop" if (node, kind, count) == (10, "round", 4) else ""  # noqa: E731
    with pytest.raises(Stopped):
        run_on_nodes(grid(three, tmp_path, stop), options(three, out, set=more))
    lose(tmp_path, 2)
    run_on_nodes(grid(three, tmp_path), options(three, out, set=more))
    assert "node 2: lost what its devices kept of round 3, went on from round 0" in caplog.text
    assert [line.get("nodes") for line in lines(out)] == [None, 3, 3, 3, 3]


def test_a_server_that_was_restored_from_a_backup_goes_on(
    three: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nodes hold later rounds alone, and go on from what is nearest."""
    out, room = tmp_path / "run", tmp_path / "run.unfinished"

    def fault(node: int, kind: str, count: int) -> str:
        if (node, kind, count) == (10, "round", 2):
            shutil.copytree(room, tmp_path / "backup")
        return "stop" if (node, kind, count) == (10, "round", 6) else ""

    more = {"rounds": 6}
    with pytest.raises(Stopped):
        run_on_nodes(grid(three, tmp_path, fault), options(three, out, set=more))
    shutil.rmtree(room)
    (tmp_path / "backup").rename(room)
    run_on_nodes(grid(three, tmp_path), options(three, out, set=more))
    assert "lost what its devices kept of round 1, went on from round" in caplog.text
    assert [line.get("nodes") for line in lines(out)] == [None, *[3] * 6]


def test_an_upload_counts_though_its_node_has_left(three: World, tmp_path: Path) -> None:
    here = grid(three, tmp_path)

    def fault(node: int, kind: str, count: int) -> str:
        if (node, kind, count) == (12, "round", 2):
            here.starts[11] = -1  # it has answered
        return "untaken" if node == 11 and kind == "finish" else ""

    here.fault = fault
    out = tmp_path / "run"
    run_on_nodes(here, options(three, out, min_nodes=2, deadline=1))
    assert [(line["nodes"], line["refused"]) for line in lines(out)[1:]] == [(3, {}), (3, {})]
    assert summary(out)["nodes_untold"] == [1]


def test_a_secure_sum_counts_though_the_first_node_has_left(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    six = world(tmp_path_factory, 6)
    here = grid(six, tmp_path, nodes=6)
    phases = 4  # of the sum of item counts, then of the first round

    def fault(node: int, kind: str, count: int) -> str:
        if (node, kind, count) == (11, "secure", phases + 3):
            here.starts[10] = -1  # its masked vector is there
        return "offline" if node == 10 and kind == "secure" and count > phases + 3 else ""

    here.fault = fault
    out = tmp_path / "run"
    run_on_nodes(here, options(six, out, min_nodes=5, secure=True, deadline=2, set={"rounds": 1}))
    (line,) = lines(out)[1:]
    assert (line["nodes"], line["refused"]) == (6, {})
    found, expected = (saved_round(run, 1)[1] for run in (out, six.local(rounds=1)))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_a_node_that_missed_the_end_is_told_when_the_run_is_started_again(three: World, tmp_path: Path) -> None:
    out = tmp_path / "run"
    deaf: Fault = lambda node, kind, count: "untaken" if (node, kind) == (11, "finish") else ""  # noqa: E731
    run_on_nodes(grid(three, tmp_path, deaf), options(three, out, deadline=1))
    assert summary(out)["nodes_untold"] == [1]
    assert list((tmp_path / "store-1").glob("*.unfinished"))
    run_on_nodes(grid(three, tmp_path), options(three, out))
    assert summary(out)["nodes_untold"] == []
    whole = load_run(three.local()).predictions()
    assert pl.concat(load_run(kept(tmp_path, node)).predictions() for node in range(3)).equals(whole)
    run_on_nodes(HereGrid({}), options(three, out))  # nobody is asked any more


def test_a_node_does_not_finish_with_a_damaged_round(three: World, tmp_path: Path) -> None:
    def fault(node: int, kind: str, count: int) -> str:
        if (node, kind) == (12, "finish"):
            for path in (tmp_path / "store-2").glob("*.unfinished/checkpoints/node-0/*/personal.safetensors"):
                path.write_bytes(path.read_bytes()[:-1])
        return ""

    out = tmp_path / "run"
    run_on_nodes(grid(three, tmp_path, fault), options(three, out))
    assert summary(out)["nodes_untold"] == [2]
    assert list((tmp_path / "store-2").glob("*.unfinished"))


def test_a_node_that_does_not_fit_is_told_why(
    three: World, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = grid(three, tmp_path)
    here.configs[12] = {key: value for key, value in here.configs[12].items() if key != "foundation"}
    monkeypatch.setattr("fedpa.drivers.flower.client.log_to", lambda *_, **__: None)
    run_on_nodes(here, options(three, tmp_path / "run", min_nodes=2))
    assert "node 2: cannot prepare: was given no foundation" in caplog.text
    assert lines(tmp_path / "run")[1]["nodes"] == 2


def test_a_run_without_answers_ends(three: World, tmp_path: Path) -> None:
    here = grid(three, tmp_path, lambda node, kind, count: "untaken" if kind == "round" else "")
    with pytest.raises(FedpaError, match="no node answered"):
        run_on_nodes(here, options(three, tmp_path / "run", deadline=0.2))


def test_another_run_of_the_name_is_refused(three: World, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run_on_nodes(grid(three, tmp_path), options(three, out))
    before = shared(out)
    run_on_nodes(HereGrid({}), options(three, out))  # finished: nobody is asked
    with pytest.raises(ArtifactError, match="with another settings"):
        run_on_nodes(HereGrid({}), options(three, out, set={"lr": 0.2}))
    run_on_nodes(grid(three, tmp_path), options(three, out, overwrite=True, set={"lr": 0.2}))
    assert shared(out) != before


def test_a_run_that_is_started_anew_takes_nothing_from_the_one_before(three: World, tmp_path: Path) -> None:
    """Nodes still have the rounds of the first, and not all of them."""
    out = tmp_path / "run"
    run_on_nodes(grid(three, tmp_path), options(three, out))
    first = shared(out)
    run_on_nodes(grid(three, tmp_path), options(three, out, overwrite=True))
    assert shared(out) == first
    assert summary(out)["answers_lost"] == {}
    assert len([path for path in (tmp_path / "store-0").iterdir() if path.is_dir()]) == 2


@pytest.mark.parametrize("given", [{"method": "gpfedrec"}, {"set": {"visible": "rows", "aggregation": "median"}}])
def test_a_server_that_tells_users_apart_is_refused(three: World, tmp_path: Path, given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="choose a method whose server sees sums alone"):
        run_on_nodes(HereGrid({}), options(three, tmp_path / "run", **given))
    assert not list(tmp_path.iterdir())


def test_a_method_without_federation_is_refused(three: World, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="two-counters: has no federation"):
        run_on_nodes(HereGrid({}), options(three, tmp_path / "run", method="two-counters"))
