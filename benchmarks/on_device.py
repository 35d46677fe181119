"""Measure an export: sizes of its files, time to score 1,000 items with ONNX Runtime, time of a NumPy training round.

    python benchmarks/on_device.py --dataset DATASET --foundation FOUNDATION

Without a data set and its foundation, on synthetic users. ONNX Runtime has one thread. Of each user the best of a few
repetitions is taken, of users the median.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import numpy as np

from fedpa import adapt, export, load_dataset, load_foundation, open_source, prepare, pretrain
from fedpa.data.synthetic import synthesise
from score_on_device import Scorer
from train_on_device import Device, train

ITEMS = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", type=Path)
    parser.add_argument("--foundation", type=Path)
    parser.add_argument("--preset", default="default")
    parser.add_argument("--users", type=int, default=50)
    parser.add_argument("--repeat", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measured(options, Path(folder)), indent=2))


def measured(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    if options.dataset and options.foundation:
        dataset, foundation = load_dataset(options.dataset), load_foundation(options.foundation)
    else:
        synthesise(folder / "raw", users=500, items=ITEMS, rows_per_user=20, seed=0)
        dataset = prepare(open_source("kuairand-pure", folder / "raw"), folder / "dataset")
        foundation = pretrain(dataset, epochs=2)
    run = adapt(foundation, dataset, out=folder / "run", preset=options.preset, rounds=1)
    trained = np.flatnonzero(run.rows.train > 0)
    chosen = trained[np.linspace(0, len(trained) - 1, options.users).astype(np.int64)]
    users = run.dataset.user_ids.gather(run.rows.users[chosen]).to_list()
    report = export(run, folder / "devices", users=users, rows=True)
    scorer, features, scoring, training = Scorer(folder / "devices"), [], [], []
    for user in users:
        device = Device(folder / "devices", str(user))
        rows = device.rows(folder / "devices" / "rows" / f"{user}.csv")
        feeds = scorer.feeds(device, rows)
        some = {name: value[:ITEMS] if len(value) == run.dataset.n_items else value for name, value in feeds.items()}
        features.append(best(lambda d=device, r=rows: scorer.feeds(d, r), 3))  # type: ignore[misc]
        scoring.append(best(lambda f=some: scorer.scores(f), options.repeat))  # type: ignore[misc]
        training.append(best(lambda d=device, r=rows: train(d, r, 1), 3))  # type: ignore[misc]
    thousands = run.dataset.n_items / ITEMS
    return {
        "preset": options.preset,
        "items": run.dataset.n_items,
        "users": len(users),
        "rows_trained_on_median": float(np.median(run.rows.train[chosen])),
        "bytes": report["bytes"],
        "milliseconds_scores_1000_items": 1e3 * float(np.median(scoring)) / min(thousands, 1),
        "milliseconds_inputs_1000_items": 1e3 * float(np.median(features)) / thousands,
        "milliseconds_training_round": 1e3 * float(np.median(training)),
    }


def best(work: Callable[[], object], repeat: int) -> float:
    seconds = []
    for _ in range(repeat):
        begin = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


if __name__ == "__main__":
    main()
