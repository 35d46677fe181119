"""Measure a federated round: the engine, a plain loop over users, the floor, and growth with users.

    python benchmarks/round.py --dataset DATASET --foundation FOUNDATION --json

Everything that is compared is measured in one run, in turn, and the best of a few repetitions is taken, since the
machine's speed drifts. ``--plain FOUNDATION`` measures a second foundation in turn with the first, such as one that
reads no past. ``--scale 10000,100000,1000000`` adds synthetic users with 8 rows each, every size in a process of its
own, with its peak memory; their pasts are read by the light reader, and a round includes the checkpoint of what devices
keep, on the disk.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fedpa import load_dataset, load_foundation
from fedpa.data.dataset import Dataset, Part
from fedpa.data.past import Past
from fedpa.data.statistics import Counted
from fedpa.federation.coordinator import split_values
from fedpa.federation.node import split_sums
from fedpa.federation.rows import ShardRows
from fedpa.federation.server import Server
from fedpa.federation.shard import Shard
from fedpa.methods.fedpa import FedPA
from fedpa.models.adapted import AdaptedMLP, AdapterSettings
from fedpa.models.foundation import Foundation
from fedpa.models.history import LightHistory
from fedpa.models.history.taste import Taste
from fedpa.models.inputs import Inputs
from fedpa.models.mlp import MLP
from memory import peak_memory
from plain_loop import train_user

CPU = torch.device("cpu")
ROWS_EACH = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", type=Path)
    parser.add_argument("--foundation", type=Path)
    parser.add_argument("--plain", type=Path)
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--loop-users", type=int, default=300)
    parser.add_argument("--scale", default="")
    parser.add_argument("--one-size", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.one_size:
        print(json.dumps(one_size(options.one_size)))
        return
    report: dict[str, Any] = {"threads": torch.get_num_threads(), "torch": torch.__version__}
    if options.dataset and options.foundation:
        report |= real_data(options.dataset, options.foundation, options.plain, options.repeat, options.loop_users)
    report["scale"] = [in_own_process(int(users)) for users in options.scale.split(",") if users]
    if options.json:
        print(json.dumps(report, indent=2))
    else:
        for key, value in report.items():
            print(f"{key:28} {value}")


def real_data(
    dataset_path: Path, foundation_path: Path, plain_path: Path | None, repeat: int, loop_users: int
) -> dict[str, Any]:
    dataset = load_dataset(dataset_path)
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as other:
        shard, server = engine(dataset, foundation_path, folder)
        beside = None if plain_path is None else engine(dataset, plain_path, other)
        model, rows = cast(AdaptedMLP, shard.model), shard.rows
        floor = Floor(shard, server)
        train, evaluate, bottom, loop, plain = [], [], [], [], []
        for number in range(repeat):
            if beside is not None:
                plain.append(timed(lambda n=number: beside[1].step(beside[0].round(beside[1].state, n))))  # type: ignore[misc]
            train.append(timed(lambda n=number: server.step(shard.round(server.state, n))))  # type: ignore[misc]
            evaluate.append(timed(lambda: split_values(split_sums(rows, shard.scores(server.state)))))
            bottom.append(timed(floor.run))
            loop.append(timed(lambda: plain_loop(model, shard, server, loop_users)) / loop_users)
    users = int((rows.train > 0).sum())
    return {
        "users": users,
        "rows_train": int(rows.train.sum()),
        "rows_evaluate": len(rows.row),
        "seconds_train_round": min(train),
        "seconds_evaluate": min(evaluate),
        "seconds_floor": min(bottom),
        "seconds_loop_per_user": min(loop),
        "speedup_over_loop": min(loop) / (min(train) / users),
        "ratio_to_floor": min(train) / min(bottom),
        **({"ratio_to_plain": min(train) / min(plain)} if plain else {}),
    }


def engine(dataset: Dataset, foundation_path: Path, folder: str) -> tuple[Shard, Server]:
    """All private users of a data set around a foundation, with the published parts of FedPA."""
    foundation = load_foundation(foundation_path)
    method = FedPA(AdapterSettings())
    model = method.build(foundation, dataset, 0, CPU)
    rows = method.rows(foundation, dataset, ShardRows.of(dataset, dtype=torch.float32, device=CPU), None)
    store = Shard.new_store(model, rows, method.settings, Path(folder))
    return Shard(model, rows, method.settings, store, seed=0), Server(model.layout, torch.float32)


def timed(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def plain_loop(model: AdaptedMLP, shard: Shard, server: Server, users: int) -> None:
    """A sample of users spread over all, each trained on its own; sums of changes like the engine's."""
    rows = shard.rows
    trained = np.flatnonzero(rows.train > 0)
    sample = trained[np.linspace(0, len(trained) - 1, users).astype(np.int64)]
    total: dict[str, Tensor] = {}
    for local in sample:
        weights = shard.weights_of(np.array([local]), server.state)
        blocks = {name: view[0] for name, view in model.layout.views(weights).items()}
        span = slice(rows.begin[local], rows.begin[local] + rows.train[local])
        batch = rows.batch(np.array([local]), torch.arange(span.start, span.stop)[None])
        change = train_user(model, blocks, batch, rows.labels[span])
        for name, value in change.items():
            total[name] = total[name] + value if name in total else value


class Floor:
    """The matrix products of one round, replayed on warm memory, and one read and write of every parameter.

    The shapes are recorded from a real round, so products that the engine saves are not counted either.
    """

    def __init__(self, shard: Shard, server: Server) -> None:
        self.threads = torch.get_num_threads()
        torch.set_num_threads(1)
        with Recorder() as recorder:
            shard.round(server.state, 0)
        torch.set_num_threads(self.threads)
        kinds: dict[Any, int] = {}
        for shape in recorder.shapes:
            kinds[shape] = kinds.get(shape, 0) + 1
        self.products = [(torch.randn(a), torch.randn(b), count) for (a, b), count in kinds.items()]
        users = int((shard.rows.train > 0).sum())
        self.weights = torch.zeros(512, shard.layout.size)
        self.sweeps = -(-users // 512)

    def run(self) -> None:
        """Do all of it once."""
        torch.set_num_threads(1)
        work: list[Callable[[], None]] = [lambda a=a, b=b, n=n: repeat_product(a, b, n) for a, b, n in self.products]  # type: ignore[misc]
        halves = [self.weights.clone() for _ in range(self.threads)]
        work += [lambda w=w: sweep(w, -(-self.sweeps // self.threads)) for w in halves]  # type: ignore[misc]
        with ThreadPoolExecutor(self.threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            list(pool.map(lambda job: job(), work))
        torch.set_num_threads(self.threads)


def repeat_product(a: Tensor, b: Tensor, count: int) -> None:
    out = a @ b
    for _ in range(count - 1):
        torch.matmul(a, b, out=out)


def sweep(weights: Tensor, count: int) -> None:
    for _ in range(count):
        weights.add_(1.0)


class Recorder(TorchDispatchMode):
    """Notes the operand shapes of every matrix product."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.shapes: list[tuple[tuple[int, ...], tuple[int, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in ("bmm", "mm", "addmm") and args[-1].dtype == torch.float32:
            a, b = args[-2:]
            self.shapes.append((tuple(a.shape), tuple(b.shape)))
        return func(*args, **(kwargs or {}))


def in_own_process(users: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--one-size", str(users)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def one_size(users: int) -> dict[str, Any]:
    """A round of synthetic users with 8 rows each, personal parameters on disk, in this process."""
    rng = np.random.default_rng(0)
    sizes = [9, 2, 2, 8, 9, 7, 8, 2, 7, 50, 16, 34, 3, 118, 7, 5, 5, 3, 3, 3, 3, 3, 3]
    items = 7583
    features = {
        "user": [(f"u{i}", size) for i, size in enumerate(sizes)],
        "item": [(f"i{i}", 100) for i in range(6)],
        "context": [],
    }
    torch.manual_seed(0)
    reader = LightHistory([(name, 1) for name, _ in features["item"]], Taste([100] * 6, 4))
    foundation = Foundation.of(MLP(features, dense=reader.width), {}, {}, Inputs(reader))
    codes = rng.integers(0, np.array(sizes), (users, len(sizes)), dtype=np.int32)
    data = Synthetic(codes, rng.integers(0, 100, (items, 6), dtype=np.int32))
    method = FedPA(AdapterSettings())
    model = AdaptedMLP(AdapterSettings(), method.scope, foundation, data, seed=0, device=CPU)  # type: ignore[arg-type]
    count = users * ROWS_EACH
    clicks = rng.random((users, ROWS_EACH)) < 0.4
    seen, none = np.tile(np.arange(ROWS_EACH), users), np.zeros(count, np.int64)
    shown = rng.integers(0, items, count)
    rows = ShardRows(
        users=np.arange(users),
        keys=np.arange(users, dtype=np.uint64),
        groups={key: torch.from_numpy(value.astype(np.int64)) for key, value in data.groups.items()},
        begin=np.arange(users) * ROWS_EACH,
        train=np.full(users, ROWS_EACH),
        total=np.full(users, ROWS_EACH),
        row=np.arange(count),
        user=np.repeat(np.arange(users), ROWS_EACH),
        part=np.full(count, 2, np.uint8),
        time=np.arange(count),
        items=torch.from_numpy(shown),
        context=torch.zeros(count, 0, dtype=torch.int64),
        labels=torch.from_numpy(clicks.ravel().astype(np.float32)),
        own_views=seen,
        own_clicks=(clicks.cumsum(1) - clicks).ravel(),
        item_views=none,
        item_clicks=none,
        open_views=none,
        open_clicks=none,
    )
    part = np.full(count, Part.TRAIN, np.uint8)
    counted = Counted(rows.user.astype(np.uint32), shown.astype(np.uint32), rows.time, clicks.ravel(), part)
    begin = time.perf_counter()
    dense = torch.from_numpy(reader.read(Past(counted, users), data.item_codes, rows.queries())).squeeze(1)
    reading = time.perf_counter() - begin
    rows = replace(rows, dense=dense)
    with tempfile.TemporaryDirectory() as folder:
        store = Shard.new_store(model, rows, method.settings, Path(folder), sync=True)
        shard = Shard(model, rows, method.settings, store, seed=0)
        server = Server(model.layout, torch.float32)
        seconds = [timed(lambda n=n: server.step(shard.round(server.state, n))) for n in range(2)]  # type: ignore[misc]
        return {
            "users": users,
            "rows": count,
            "seconds": min(seconds),
            "seconds_each": seconds,
            "seconds_reading_pasts": reading,
            "rss_bytes": peak_memory(),
        }


class Synthetic:
    """The few things that a model asks of a data set."""

    def __init__(self, user_codes: Any, item_codes: Any) -> None:
        self.user_codes, self.item_codes, self.n_items = user_codes, item_codes, len(item_codes)
        self.manifest = {"settings": {"features": "reference"}}
        self.groups = {"follow": user_codes[:, 3], "register": user_codes[:, 6]}
        self.group_sizes = {"follow": 8, "register": 8}


if __name__ == "__main__":
    main()
