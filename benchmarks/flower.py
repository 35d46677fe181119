"""Measure a round on Flower: the bare shards, the round, a round of the engine that does nothing, memory, bytes.

    python benchmarks/flower.py --dataset DATASET --foundation FOUNDATION --nodes 2 --rounds 6 --json

A real SuperLink and real SuperNodes run on this machine, with TLS and node authentication. A round of the engine that
does nothing has the same imports on the node and the same bytes both ways; both are measured in turn, run by run, since
the machine's speed drifts. Flower looks for messages every three seconds: no round on it is shorter. Without
``--dataset`` the users are synthetic.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import psutil  # type: ignore[import-untyped]
import torch

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

from drivers.flower_net import Net, network
from fedpa.adaptation import adapt
from fedpa.data.dataset import Dataset, load_dataset
from fedpa.data.prepare import prepare
from fedpa.data.shard import node_folder, shard
from fedpa.data.sources import open_source
from fedpa.data.synthetic import synthesise
from fedpa.drivers.flower.letter import Letter, packed
from fedpa.federation.node import Node
from fedpa.federation.order import Base, Order
from fedpa.federation.tally import Tally
from fedpa.federation.wire import pack_order, pack_report, pack_sums
from fedpa.methods import FederatedMethod, find_method
from fedpa.models.foundation import Foundation, load_foundation
from fedpa.models.pretrain import pretrain

SETTINGS: dict[str, Any] = {"patience": 0}
NULL = {
    "pyproject.toml": """\
[project]
name = "fedpa-null"
version = "1.0.0"
description = "A round of the engine that does nothing"
license = "Apache-2.0"
[tool.flwr.app]
publisher = "fedpa"
[tool.flwr.app.components]
serverapp = "nothing.server:app"
clientapp = "nothing.client:app"
[tool.flwr.app.config]
rounds = 1
nodes = 1
down = 1
up = 1
out = ""
""",
    "nothing/__init__.py": "",
    "nothing/server.py": """\
import json, time
from pathlib import Path
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp
app = ServerApp()
@app.main()
def main(grid, context):
    config = context.run_config
    while len(nodes := list(grid.get_node_ids())) < config["nodes"]:
        time.sleep(0.2)
    seconds = []
    for number in range(config["rounds"]):
        begin = time.perf_counter()
        block = bytes([number % 256]) * config["down"]
        record = RecordDict({"head": ConfigRecord({"up": config["up"]}),
                             "arrays": ArrayRecord({"block": Array("uint8", (len(block),), "none", block)})})
        ids = set(grid.push_messages([Message(record, node, "query.round", ttl=600) for node in nodes]))
        while ids:
            for reply in grid.pull_messages(list(ids)):
                assert reply.has_content(), reply.error
                ids.discard(reply.metadata.reply_to_message_id)
            time.sleep(0.2)
        seconds.append(time.perf_counter() - begin)
    Path(config["out"]).write_text(json.dumps(seconds))
""",
    "nothing/client.py": """\
import os
import fedpa.drivers.flower.client
import fedpa.drivers.flower.secure_work
import fedpa.drivers.flower.work
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.clientapp import ClientApp
app = ClientApp()
@app.query("round")
def round_(message, context):
    block = os.urandom(message.content["head"]["up"])
    return Message(RecordDict({"arrays": ArrayRecord({"block": Array("uint8", (len(block),), "none", block)})}),
                   reply_to=message)
""",
}


class Alone(NamedTuple):
    """What one node's part of a round is without Flower."""

    seconds: float
    ready: float
    down: int
    up: int
    counted_down: int
    counted_up: int
    scores: int
    users: int
    rows: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", type=Path)
    parser.add_argument("--foundation", type=Path)
    parser.add_argument("--users", type=int, default=2000, help="synthetic ones, without --dataset")
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fedpa-flower-") as name:
        folder = Path(name)
        if options.dataset and options.foundation:
            dataset, place = load_dataset(options.dataset), options.foundation.resolve()
        else:
            dataset, place = synthetic(folder, options.users)
        report = measured(folder, dataset, place, options.nodes, options.rounds, options.repeat)
    if options.json:
        print(json.dumps(report, indent=2))
    else:
        for key, value in report.items():
            print(f"{key:28} {value}")


def synthetic(folder: Path, users: int) -> tuple[Dataset, Path]:
    synthesise(folder / "raw", users=users, items=500, rows_per_user=20)
    dataset = prepare(open_source("kuairand-pure", folder / "raw"), folder / "dataset")
    pretrain(dataset, out=folder / "foundation", epochs=1)
    return dataset, folder / "foundation"


def measured(folder: Path, dataset: Dataset, place: Path, nodes: int, rounds: int, repeat: int) -> dict[str, Any]:
    torch.set_num_threads(1)  # as the nodes' processes
    foundation = load_foundation(place)
    shards = shard(dataset, folder / "shards", shards=nodes)
    alone = [
        bare(foundation, load_dataset(shards[node_folder(node)]), folder / "bare" / str(node), nodes)
        for node in range(nodes)
    ]
    seconds: list[float] = []
    nothing: list[float] = []
    with network(folder / "net", nodes) as net:
        for node in range(nodes):
            config = {"dataset": shards[node_folder(node)], "foundation": place, "store": folder / f"store-{node}"}
            net.node(node, config)
        common = {"dataset": str(shards["server"]), "foundation": str(place), "min_nodes": nodes}
        with Memory(net, nodes) as memory:
            for number in range(repeat):
                nothing += null(net, folder, nodes, rounds, alone[0], number)
                out = folder / f"run-{number}"
                app = net.app(out=str(out), settings=f"patience=0 rounds={rounds}", **common)
                facts = net.completed(app, seconds=3600)
                lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
                seconds += [a["seconds_eval"] + b["seconds_train"] for a, b in itertools.pairwise(lines)]
        once = net.completed(net.app(out=str(folder / "once"), settings="patience=0 rounds=1", **common), seconds=3600)
    adapt(foundation, dataset, out=folder / "local", foundation_path=place, rounds=rounds, **SETTINGS)
    same = (folder / "local" / "shared.safetensors").read_bytes() == (out / "shared.safetensors").read_bytes()
    up, down = (per_message(facts, once, way, nodes, rounds) for way in ("inbound-bytes", "outbound-bytes"))
    bare_seconds, round_seconds, null_seconds = (
        max(one.seconds for one in alone),
        statistics.median(seconds),
        statistics.median(nothing),
    )
    return {
        "nodes": nodes,
        "users": sum(one.users for one in alone),
        "rows": sum(one.rows for one in alone),
        "equal_to_one_process": same,
        "seconds_bare_shard": round(bare_seconds, 3),
        "seconds_ready": round(max(one.ready for one in alone), 3),
        "seconds_round": round(round_seconds, 3),
        "seconds_round_all": [round(one, 2) for one in seconds],
        "seconds_null_round": round(null_seconds, 3),
        "seconds_null_round_all": [round(one, 2) for one in nothing],
        "ratio_to_null": round(round_seconds / null_seconds, 3),
        "ratio_to_null_without_shard": round((round_seconds - bare_seconds) / null_seconds, 3),
        "memory_node_bytes": memory.node,
        "memory_supernode_bytes": memory.supernode,
        "bytes_down_wire": round(down),
        "bytes_down_counted": alone[0].counted_down,
        "bytes_up_wire": round(up),
        "bytes_up_counted": alone[0].counted_up,
        "bytes_up_scores": round(statistics.mean(one.scores for one in alone)),
        "ratio_down": round(down / alone[0].counted_down, 4),
        "ratio_up": round((up - statistics.mean(one.scores for one in alone)) / alone[0].counted_up, 4),
    }


def per_message(facts: dict[str, Any], once: dict[str, Any], way: str, nodes: int, rounds: int) -> float:
    """Bytes of one node and round: what more rounds cost more, so that beginning and end do not count."""
    many, few = facts["network-traffic"][way], once["network-traffic"][way]
    return float(many - few) / (nodes * (rounds - 1))


def bare(foundation: Foundation, dataset: Dataset, folder: Path, nodes: int) -> Alone:
    """A node's part of a round in this process."""
    method = find_method("fedpa").configured("default", SETTINGS, foundation)
    assert isinstance(method, FederatedMethod)
    begin = time.perf_counter()
    node = Node(method, foundation, dataset, seed=0, folder=folder)
    tally: Tally | None = node.tally()
    node.start(tally)
    ready = time.perf_counter() - begin
    layout = node.shard.layout
    server = method.server(layout)
    order = Order("0123456789abcdef", 1, tuple(server.state))
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        sums, report = node.evaluate(order, Base(0, (0,))), node.train(order, Base(0, (0,)))
        seconds.append(time.perf_counter() - begin)
    head = {"run": order.run, "node": 0, "session": 1 << 40, "serial": 1, "round": 1}
    parts = pack_sums(order.run, 1, 0, sums), pack_report(layout, method.settings, report)
    down = len(packed(Letter("round", head, (pack_order(layout, order),)))[1])
    up = len(packed(Letter("round", head, parts))[1])
    scores = up - len(packed(Letter("round", head, parts[1:]))[1])
    size = method.settings.torch_dtype.itemsize
    weights = sum(
        v.table.rows if v.table and method.settings.table_mean == "touched" else v.values for v in layout.uploaded
    )
    numbers = sum(v.values * v.size for v in layout.uploaded)
    return Alone(
        min(seconds),
        ready,
        down,
        up,
        numbers * size,
        (numbers + weights) * 8,
        scores,
        len(node.users),
        len(node.shard.rows.row),
    )


def null(net: Net, folder: Path, nodes: int, rounds: int, alone: Alone, number: int) -> list[float]:
    """Seconds of rounds of the engine that does nothing."""
    app, out = folder / "null", folder / f"null-{number}.json"
    for name, text in NULL.items():
        (app / name).parent.mkdir(parents=True, exist_ok=True)
        (app / name).write_text(text)
    net.completed(app, f'nodes={nodes} rounds={rounds} down={alone.down} up={alone.up} out="{out}"', seconds=3600)
    found: list[float] = json.loads(out.read_text())
    return found


class Memory:
    """The most that a node's ClientApp, and its SuperNode with what watches over it, have held at once."""

    def __init__(self, net: Net, nodes: int) -> None:
        self._net, self._nodes = net, nodes
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.node = self.supernode = 0

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._end.wait(0.2):
            for node in range(self._nodes):
                own = still = 0
                for process in self._net.tree(f"node-{node}"):
                    try:
                        size, line = process.memory_info().rss, " ".join(process.cmdline()[:3])
                    except psutil.Error:
                        continue
                    if "flwr-clientapp" in line:
                        own = max(own, size)  # one that ends may still be there
                    else:
                        still += size
                self.node, self.supernode = max(self.node, own), max(self.supernode, still)


if __name__ == "__main__":
    main()
