"""Measure rounds on Ray: beside bare shards, memory of actors, bytes put, and growth with users and workers.

    python benchmarks/ray_driver.py --scale 10000,100000 --workers 1,2 --json

Users are copies of synthetic ones, in a data set folder that every actor loads, around a foundation that reads their
pasts; a round has all of them, and ends with what devices keep on the disk. ``bare`` are the same shards in processes
without Ray, at the same time. ``over`` is a round's wall time beyond the slowest of its actors' own. This file is not
named ray.py, since Python would take that for Ray.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl
import torch

from fedpa import load_dataset, load_foundation
from fedpa.data.dataset import OPEN, PRIVATE, Dataset
from fedpa.data.derive import row_facts, write_derived_manifest, write_rows
from fedpa.data.encode import Numeric, from_json
from fedpa.data.prepare import prepare
from fedpa.data.sources import open_source
from fedpa.data.synthetic import synthesise
from fedpa.drivers.driver import Plan
from fedpa.drivers.ray import RayDriver
from fedpa.federation.order import Base, Order
from fedpa.federation.server import Server, Upload
from fedpa.methods import FederatedMethod, find_method
from fedpa.models.pretrain import pretrain
from memory import peak_memory

BASE_USERS, ITEMS, ROWS_EACH = 2500, 7583, 13  # of the rows, 8 are trained on
CPU = torch.device("cpu")
RUN = "0" * 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", default="10000")
    parser.add_argument("--workers", default="1,2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    report: dict[str, Any] = {"torch": torch.__version__, "threads_per_actor": 1, "sizes": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        synthesise(folder / "raw", users=BASE_USERS, items=ITEMS, rows_per_user=ROWS_EACH)
        base = prepare(open_source("kuairand-pure", folder / "raw"), folder / "base")
        pretrain(base, out=folder / "foundation", epochs=1)
        for users in map(int, options.scale.split(",")):
            dataset = scaled(base, users, folder / f"users-{users}")
            for workers in map(int, options.workers.split(",")):
                with tempfile.TemporaryDirectory(dir=folder) as room:
                    plan, server = planned(dataset, folder / "foundation", workers, Path(room))
                    found = {"users": users, "workers": workers, **measured(plan, server, options.rounds)}
                report["sizes"].append(found)
                if not options.json:
                    print("\n".join(f"{key:28} {value}" for key, value in found.items()), "\n")
    if options.json:
        print(json.dumps(report, indent=2))


def scaled(base: Dataset, users: int, out: Path) -> Dataset:
    """A data set with so many private users, who are copies of the base's, and its open ones."""
    private = np.flatnonzero(base.side == PRIVATE)
    opened = np.flatnonzero(base.side == OPEN)
    chosen = np.concatenate([opened, np.resize(private, users)])
    begin, each = base.user_starts[chosen], np.diff(base.user_starts)[chosen]
    rows = np.repeat(begin - (np.cumsum(each) - each), each) + np.arange(each.sum())
    user = np.repeat(np.arange(len(chosen), dtype=np.uint32), each)
    out.mkdir()
    table = pl.read_parquet(base.path / "users.parquet")[chosen].with_columns(user_id=pl.int_range(len(chosen)))
    table.write_parquet(out / "users.parquet")
    (out / "items.parquet").write_bytes((base.path / "items.parquet").read_bytes())
    interactions = pl.read_parquet(base.path / "interactions.parquet")[rows].with_columns(pl.Series("user", user))
    write_rows(out, interactions, base.part[rows])
    labels = {name: interactions.get_column(name).to_numpy() for name in base.label_names}
    encoders = (from_json(content) for content in base.manifest["features"]["context"])
    counts = row_facts(user, base.part[rows], base.side[chosen], labels)
    write_derived_manifest(
        out,
        base,
        raw=(),
        settings=base.manifest["settings"],
        counts=counts | {"rows_read": len(rows), "dropped": {}, "items": base.n_items},
        context=[encoder for encoder in encoders if isinstance(encoder, Numeric)],
        notes=["copies of users, for a measurement"],
    )
    return load_dataset(out)


def planned(dataset: Dataset, foundation_path: Path, workers: int, room: Path) -> tuple[Plan, Server]:
    foundation = load_foundation(foundation_path)
    method = cast(FederatedMethod, find_method("fedpa").configured("default", {"item_counts": 0}, foundation))
    settings = method.settings.model_dump(mode="json")
    plan = Plan("fedpa", settings, str(dataset.path), str(foundation_path), 0, workers, str(room / "ray"))
    return plan, method.server(method.model(foundation, dataset, 0, CPU).layout)


class Metered(RayDriver):
    """Notes how large answers are in Ray's store."""

    received = 0

    def _answer(self, call: Any) -> Any:
        answer = super()._answer(call)
        self.received += self.size(call)
        return answer

    def size(self, ref: Any) -> int:
        """Bytes of an object in the store."""
        return int(self._ray.experimental.get_object_locations([ref])[ref]["object_size"])

    def facts(self) -> list[dict[str, Any]]:
        """What each actor says of itself."""
        return cast(list[dict[str, Any]], self._ray.get([actor.facts.remote() for actor in self._actors.values()]))


def measured(plan: Plan, server: Server, rounds: int) -> dict[str, Any]:
    bare, bare_memory = bare_rounds(replace(plan, folder=f"{plan.folder}-bare"), list(server.state), rounds)
    driver = Metered(plan)
    wall: list[float] = []
    slowest: list[float] = []
    scoring: list[float] = []
    try:
        begin = time.perf_counter()
        driver.start()
        starting = time.perf_counter() - begin
        for number in range(1, rounds + 1):
            order = Order(RUN, number, tuple(server.state))
            bases = dict.fromkeys(driver.nodes, Base(number - 1, (number - 1,)))
            begin = time.perf_counter()
            driver.evaluate(order, bases)
            scoring.append(time.perf_counter() - begin)
            driver.received = 0
            begin = time.perf_counter()
            reports = driver.train(order, bases)
            wall.append(time.perf_counter() - begin)
            up = driver.received
            slowest.append(max(one["seconds"] for one in driver.facts()))
            total = Upload.empty(server.layout, server.settings)
            for report in reports.values():
                total += report.upload
            server.step(total)
        down, facts = driver.size(driver._sent), driver.facts()
    finally:
        driver.close()
    nobody = Upload.empty(server.layout, server.settings)
    counted_down = sum(rows.numel() for rows in server.state) * server.dtype.itemsize
    counted_up = plan.shards * sum(tensor.nbytes for tensor in (*nobody.sums, *nobody.weights))
    return {
        "seconds_round": statistics.median(wall),
        "seconds_slowest_actor": statistics.median(slowest),
        "seconds_over": statistics.median(w - s for w, s in zip(wall, slowest, strict=True)),
        "seconds_over_each": [w - s for w, s in zip(wall, slowest, strict=True)],
        "seconds_bare": bare,
        "seconds_scoring": statistics.median(scoring),
        "seconds_start": starting,
        "peak_bytes_per_actor": max(one["peak_bytes"] for one in facts),
        "peak_bytes_per_bare_shard": bare_memory,
        "bytes_put": down,
        "bytes_put_counted": counted_down,
        "bytes_reports": up,
        "bytes_reports_counted": counted_up,
    }


def bare_rounds(plan: Plan, state: Sequence[torch.Tensor], rounds: int) -> tuple[float, int]:
    """The same shards in processes of their own, side by side: the slowest's median round, and the largest memory."""
    with multiprocessing.get_context("spawn").Pool(plan.shards) as pool:
        found = pool.starmap(bare_shard, [(plan, index, list(state), rounds) for index in range(plan.shards)], 1)
    return max(seconds for seconds, _ in found), max(memory for _, memory in found)


def bare_shard(plan: Plan, index: int, state: Sequence[torch.Tensor], rounds: int) -> tuple[float, int]:
    torch.set_num_threads(1)
    node = plan.node(index)
    node.start(None)
    seconds = []
    for number in range(1, rounds + 1):
        order, base = Order(RUN, number, tuple(state)), Base(number - 1, (number - 1,))
        node.evaluate(order, base)
        begin = time.perf_counter()
        node.train(order, base)
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds), peak_memory()


if __name__ == "__main__":
    main()
