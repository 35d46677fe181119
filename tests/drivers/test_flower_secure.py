"""Secure sums over five real SuperNodes: equal to one process, without who is killed, or none at all."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import pytest
import safetensors.numpy

from drivers.flower_net import Net, network
from drivers.flower_world import SETTINGS, World, world
from fedpa.drivers.local import LocalDriver
from fedpa.federation.coordinator import Coordinator
from fedpa.federation.node import Node, divided
from fedpa.federation.order import Base, Order, Report, Sums
from fedpa.methods import FederatedMethod, find_method
from processes import until

NODES = 5

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def five(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, Net]]:
    """Five nodes that insist on secure sums and know each other's keys."""
    made = world(tmp_path_factory, NODES)
    with network(made.folder / "net", NODES) as net:
        public = [(net.keys / f"node-{node}.pub").read_bytes() for node in range(NODES)]
        peers = made.folder / "peers"
        peers.write_bytes(b"\n".join(public) + b"\n")
        for node in range(NODES):
            own = {"secure": "true", "peers": peers, "key": net.keys / f"node-{node}"}
            net.node(node, {**made.config(node), **own})
        yield made, net


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def alike(run: Path, other: list[dict[str, Any]]) -> None:
    for mine, theirs in zip(lines(run), other, strict=True):
        for name in ("participants", "train_loss", "bytes_up", "bytes_down", "train", "val", "test"):
            assert mine[name] == theirs[name], name


def vault(made: World, node: int) -> Path:
    return made.folder / f"store-{node}" / "secure"


def stage(made: World, node: int) -> str | None:
    """How far a node is in a secure sum."""
    try:
        return str(json.loads((vault(made, node) / "session.json").read_text())["stage"])
    except (OSError, ValueError):
        return None


def kill_while_masking(made: World, net: Net, count: int) -> list[int]:
    """SIGKILL some nodes that have the others' shares, and have not masked their vector yet."""
    killed: list[int] = []

    def kill() -> bool:
        stages = {node: stage(made, node) for node in range(NODES) if node not in killed}
        if "input" not in stages.values():  # the server waits for masked vectors once somebody has one
            return False
        for node in (node for node, found in stages.items() if found == "shares"):
            tree = net.tree(f"node-{node}")
            for process in tree:
                process.suspend()
            if stage(made, node) != "shares":
                for process in tree:
                    process.resume()
                continue
            for process in tree:
                process.kill()
            net.processes[f"node-{node}"].wait()
            killed.append(node)
            if len(killed) == count:
                return True
        return False

    until(kill, 400, "nodes to kill while they mask", pause=0.01)
    return killed


def test_five_nodes_equal_one_process(five: tuple[World, Net]) -> None:
    made, net = five
    out = made.folder / "run"
    net.completed(made.app(net, out, secure=True), seconds=900)
    made.same(net, out, made.local())
    alike(out, lines(made.local()))
    summary = json.loads((out / "summary.json").read_text())
    assert summary["answers_lost"] == {}
    assert summary["private_users"] == json.loads((made.local() / "summary.json").read_text())["private_users"]
    for node in range(NODES):
        assert sorted(path.name for path in vault(made, node).iterdir()) == ["lock", "released.json"]
    # Nothing that a single node said of its users is in what the server keeps.
    assert {node["users"] for node in json.loads((out / "nodes.json").read_text())["nodes"].values()} == {0}


class WithoutOne(LocalDriver):
    """Nodes in this process, one of which is missing from the first round."""

    missing = -1

    def evaluate(self, order: Order, bases: Mapping[int, Base]) -> dict[int, Sums]:
        return {node: sums for node, sums in super().evaluate(order, bases).items() if self.there(order, node)}

    def train(self, order: Order, bases: Mapping[int, Base]) -> dict[int, Report]:
        return {node: report for node, report in super().train(order, bases).items() if self.there(order, node)}

    def there(self, order: Order, node: int) -> bool:
        return order.number > 1 or node != self.missing


def without(made: World, missing: int, folder: Path, settings: dict[str, Any]) -> tuple[Coordinator, dict[str, Any]]:
    """A run of one round over all nodes but one, in this process."""
    method = cast(FederatedMethod, find_method("fedpa").configured("default", settings, made.made.foundation))
    nodes = [
        Node(method, made.made.foundation, made.made.dataset, seed=0, folder=folder / f"{n}", index=n, users=users)
        for n, users in enumerate(divided(made.made.dataset, NODES))
    ]
    driver = WithoutOne(nodes)
    driver.missing = missing
    model = method.model(made.made.foundation, made.made.dataset, 0, nodes[0].device)
    server = method.server(model.layout)
    coordinator = Coordinator(server, driver, method.settings, folder, run="5eed", sync=False)
    server.state = coordinator.run(lambda _: None).state
    return coordinator, {name: value.numpy() for name, value in server.named().items()}


def test_a_node_killed_while_it_masks_is_left_out_of_the_sum(five: tuple[World, Net], tmp_path: Path) -> None:
    made, net = five
    out, changed = made.folder / "killed", {"rounds": 1, "item_counts": 0}
    run = net.run(made.app(net, out, secure=True, set=changed, deadline=120.0))
    (missing,) = kill_while_masking(made, net, 1)
    others = [node for node in range(NODES) if node != missing]
    until(lambda: not any(stage(made, node) for node in others), 400, "the sum of the others")
    assert net.finished(run, 900)["status"] == "finished:completed", net.log(run)
    coordinator, state = without(made, missing, tmp_path, SETTINGS | changed)
    found = safetensors.numpy.load_file(out / "shared.safetensors")
    assert found.keys() == state.keys()
    assert all(found[name].tobytes() == state[name].tobytes() for name in state)
    alike(out, coordinator.lines)
    assert lines(out)[1]["nodes"] == NODES - 1


def test_below_the_threshold_there_is_no_sum_until_enough_are_back(five: tuple[World, Net]) -> None:
    made, net = five
    out, changed = made.folder / "thin", {"rounds": 1, "item_counts": 0}
    run = net.run(made.app(net, out, secure=True, set=changed, deadline=120.0, seed=1))
    kill_while_masking(made, net, 2)
    said = "3 of 5 nodes answered phase 'input', expected at least 4; nothing was unmasked"
    until(lambda: said in net.log(run), 400, "the reason", pause=2.0)
    assert not (made.folder / "thin.unfinished" / "metrics.jsonl").exists()
    assert net.finished(run, 900)["status"] == "finished:completed", net.log(run)
    local = made.local(**changed, seed=1)
    made.same(net, out, local)
    alike(out, lines(local))


def test_nodes_that_insist_give_nothing_in_the_clear(five: tuple[World, Net]) -> None:
    made, net = five
    run = net.run(made.app(net, made.folder / "plain"))
    until(lambda: "gives masked sums alone" in net.log(run), 400, "the refusals", pause=2.0)
    net.flwr("stop", run, "fedpa")
    assert not (made.folder / "plain.unfinished" / "metrics.jsonl").exists()
