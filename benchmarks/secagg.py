"""Measure a secure sum: seconds and bytes of each phase, per node and for the server.

    python benchmarks/secagg.py --nodes 5,10,50 --lengths 77288,1000000 --json

Nodes take their turns in this process, each message from the state on the disk, as in a process of its own; what a new
process costs is the transport's. Seconds are the best of a few repetitions, of the median over nodes. ``--drop`` nodes
fall silent before they send their vectors. ``plain`` is what the server does without masks: the vectors added up. 77288
is the vector of FedPA with its default groups on KuaiRand's features.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fedpa.privacy.secagg.message import INPUT, PHASES, Message
from fedpa.privacy.secagg.node import SecureNode
from fedpa.privacy.secagg.server import SecureServer
from fedpa.privacy.secagg.terms import Terms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", default="5,10,50")
    parser.add_argument("--lengths", default="77288,1000000")
    parser.add_argument("--drop", type=int, default=0)
    parser.add_argument("--degree", type=int)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    logging.getLogger("fedpa").setLevel(logging.ERROR)
    report = []
    for nodes in map(int, options.nodes.split(",")):
        for length in map(int, options.lengths.split(",")):
            runs = [session(nodes, length, options.drop, options.degree) for _ in range(options.repeat)]
            best = runs[0]
            for kind in ("node_seconds", "server_seconds"):
                best[kind] = {phase: min(run[kind][phase] for run in runs) for phase in PHASES}
            report.append(best)
    if options.json:
        print(json.dumps(report, indent=2))
        return
    for line in report:
        nodes, length = line["nodes"], line["length"]
        print(f"{nodes} nodes, {length} integers, {line['dropped']} dropped, threshold {line['threshold']}")
        for kind in ("node_seconds", "server_seconds", "node_bytes_up", "node_bytes_down"):
            print(f"  {kind:16}", *(f"{phase} {value:.5g}" for phase, value in line[kind].items()))
        print(f"  plain sum        {line['plain_seconds']:.5f} s")


def session(nodes: int, length: int, drop: int, degree: int | None) -> dict[str, Any]:
    """One sum; medians over nodes. The vector that a node masks is at hand: to train it is not measured."""
    rng = np.random.default_rng(0)
    terms = Terms.new(range(nodes), run="5eed", purpose="round", number=1, length=length, form="", degree=degree)
    vector = rng.integers(-(2**40), 2**40, length)
    server = SecureServer(terms)
    seconds: dict[str, list[float]] = {phase: [] for phase in PHASES}
    up: dict[str, list[int]] = {phase: [] for phase in PHASES}
    down: dict[str, list[int]] = {phase: [] for phase in PHASES}
    at_server: dict[str, float] = {}
    stayed = nodes - drop
    with tempfile.TemporaryDirectory() as folder:
        for phase in PHASES:
            begin = time.perf_counter()
            requests = server.requests(phase)
            at_server[phase] = time.perf_counter() - begin
            for number, request in requests.items():
                if phase == INPUT and number >= stayed:
                    continue
                node = SecureNode(Path(folder) / str(number), number)
                answer_by: dict[str, Callable[[], Message]] = {
                    "keys": lambda n=node, r=request: n.keys(r),  # type: ignore[misc]
                    "shares": lambda n=node, r=request: n.shares(r),  # type: ignore[misc]
                    "input": lambda n=node, r=request, k=number: n.masked(r, vector + k),  # type: ignore[misc]
                    "unmask": lambda n=node, r=request: n.unmask(r),  # type: ignore[misc]
                }
                begin = time.perf_counter()
                answer = answer_by[phase]()
                seconds[phase].append(time.perf_counter() - begin)
                up[phase].append(size(answer))
                down[phase].append(size(request))
                begin = time.perf_counter()
                server.take(number, answer)
                at_server[phase] += time.perf_counter() - begin
        begin = time.perf_counter()
        total = server.total()
        at_server["unmask"] += time.perf_counter() - begin
    vectors = [vector + number for number in range(stayed)]
    begin = time.perf_counter()
    plain = np.zeros(length, np.int64)
    for one in vectors:
        plain += one
    plain_seconds = time.perf_counter() - begin
    if not np.array_equal(total, plain):
        raise SystemExit("the secure sum is not the sum")
    return {
        "nodes": nodes,
        "length": length,
        "dropped": drop,
        "threshold": terms.threshold,
        "degree": terms.degree,
        "node_seconds": {phase: float(np.median(found)) for phase, found in seconds.items()},
        "server_seconds": at_server,
        "node_bytes_up": {phase: int(np.median(found)) for phase, found in up.items()},
        "node_bytes_down": {phase: int(np.median(found)) for phase, found in down.items()},
        "plain_seconds": plain_seconds,
    }


def size(message: Message) -> int:
    """Bytes of a message's header and arrays; the transport adds its own."""
    arrays = sum(len(one) if isinstance(one, bytes) else one.nbytes for one in message.arrays.values())
    return len(json.dumps(message.header)) + arrays + sum(map(len, message.arrays))


if __name__ == "__main__":
    main()
