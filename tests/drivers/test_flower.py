"""Runs on a real SuperLink and real SuperNodes, with TLS and node authentication, equal those of one process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from drivers.flower_net import Net, network
from drivers.flower_world import World, world
from fedpa.models.pretrain import pretrain
from fedpa.run import load_run
from processes import until

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, Net]]:
    """Two nodes that are up for all tests."""
    made = world(tmp_path_factory, 2)
    with network(made.folder / "net", 3) as net:
        made.start(net, [0, 1])
        yield made, net


def lines(run: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_two_nodes_equal_one_process(two: tuple[World, Net]) -> None:
    made, net = two
    out = made.folder / "run"
    facts = net.completed(made.app(net, out))
    local = made.local()
    made.same(net, out, local)
    for mine, theirs in zip(lines(out), lines(local), strict=True):
        for name in ("participants", "train_loss", "bytes_up", "bytes_down", "train", "val", "test"):
            assert mine[name] == theirs[name], name
    summary = json.loads((out / "summary.json").read_text())
    assert summary["answers_lost"] == {}
    assert summary["private_users"] == json.loads((local / "summary.json").read_text())["private_users"]
    store = next(path for path in (made.folder / "store-0").iterdir() if path.is_dir())
    assert [named.tolist() for named in load_run(store).server.named().values()] == [
        named.tolist() for named in load_run(out).server.named().values()
    ]
    assert facts["network-traffic"]["inbound-bytes"] > 0
    # A finished run is not run again.
    before = (out / "summary.json").stat().st_mtime_ns
    net.completed(made.app(net, out))
    assert (out / "summary.json").stat().st_mtime_ns == before


def test_the_run_goes_on_without_a_node_that_is_late(two: tuple[World, Net]) -> None:
    made, net = two
    out, store = made.folder / "late", made.folder / "store-1"
    store.mkdir(exist_ok=True)
    before = set(store.iterdir())
    run = net.run(made.app(net, out, deadline=30.0, min_nodes=1))

    def told() -> bool:
        return any((place / "config.yaml").exists() for place in set(store.iterdir()) - before)

    # It has said that it is ready; what its next message needs is held back.
    until(told, 300, "the second node is ready", pause=0.02)
    held = net.below("node-1", "flower-superexec")
    assert held
    for process in held:
        process.suspend()
    try:
        notes = out.with_name("late.unfinished") / "metrics.jsonl"
        until(lambda: out.exists() or (notes.exists() and notes.read_text().count("\n") > 1), 300, "a round")
    finally:
        for process in held:
            process.resume()
    assert net.finished(run, 900)["status"] == "finished:completed", net.log(run)
    assert [line.get("late") for line in lines(out)][1] == 1
    assert json.loads((out / "summary.json").read_text())["answers_lost"]["late"] >= 1
    assert (out / "shared.safetensors").read_bytes() != (made.local() / "shared.safetensors").read_bytes()


def test_a_node_with_another_foundation_is_left_out(two: tuple[World, Net], tmp_path: Path) -> None:
    made, net = two
    out = made.folder / "unfit"
    pretrain(made.made.dataset, out=tmp_path / "other", epochs=1, lr=0.02, reader="none")
    net.node(2, {**made.config(1), "foundation": tmp_path / "other", "store": tmp_path / "store"})
    try:
        run = net.run(made.app(net, out, min_nodes=2))
        assert net.finished(run, 900)["status"] == "finished:completed"
        assert "the run has" in net.log(run)
        made.same(net, out, made.local())
    finally:
        net.stop("node-2")


@pytest.mark.parametrize("nodes", [1, 7])
def test_any_number_of_nodes_equals_one_process(tmp_path_factory: pytest.TempPathFactory, nodes: int) -> None:
    made = world(tmp_path_factory, nodes)
    with network(made.folder / "net", nodes) as net:
        made.start(net, range(nodes))
        out = made.folder / "run"
        net.completed(made.app(net, out, deadline=500.0), seconds=900)
        made.same(net, out, made.local())
