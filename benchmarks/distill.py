"""Size against quality of distilled foundations, frozen and adapted, with what a round costs a device.

    python benchmarks/distill.py --dataset DATASET --seeds 0,1,2 --rounds 8 > table.md

A teacher with a transformer is pre-trained for every seed; students of several sizes are trained twice, from clicks
alone (``mixing: 0``) and with the teacher's word, and all are adapted with FedPA. ``--json`` prints everything instead.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fedpa import Foundation, adapt, distill, load_dataset, pretrain
from fedpa.data.dataset import Dataset
from fedpa.federation.rows import ShardRows

TEACHER: Mapping[str, Any] = {"reader": "transformer", "encoder_folds": 2}
STUDENTS: Mapping[str, Mapping[str, Any]] = {
    "full": {},
    "1/2": {"encoder_width": 16},
    "1/4": {"encoder_width": 8},
    "1/10": {"encoder_width": 16, "encoder_items": False},
    "1/2 with an item embedding": {"encoder_width": 16, "item_embedding": True},
}
"""By their share of the teacher's weights, which are mostly embeddings of items."""

MIXING = 0.5

Figures = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", type=Path)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--sizes", default=",".join(STUDENTS))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.dataset is None:
        print("distill: nothing to measure without --dataset", file=sys.stderr)
        return
    dataset = load_dataset(options.dataset)
    found: dict[str, list[Figures]] = {}
    for seed in map(int, options.seeds.split(",")):
        teacher = pretrain(dataset, seed=seed, **TEACHER)
        found.setdefault("teacher", []).append(measured(teacher, dataset, options.rounds, seed))
        for size in options.sizes.split(","):
            for word, mixing in (("clicks", 0.0), ("distilled", MIXING)):
                student = distill(teacher, dataset, seed=seed, mixing=mixing, **TEACHER, **STUDENTS[size])
                row = measured(student, dataset, options.rounds, seed)
                row["share"] = student.n_weights / teacher.n_weights
                found.setdefault(f"{size}, {word}", []).append(row)
                print(f"seed {seed}: {size}, {word}: {row}", file=sys.stderr)
    if options.json:
        print(json.dumps({"torch": torch.__version__, "threads": torch.get_num_threads(), "rows": found}))
    else:
        print(table(found))


def measured(foundation: Foundation, dataset: Dataset, rounds: int, seed: int) -> Figures:
    """Quality on private users' test rows before and after adaptation, and costs per user."""
    rows = ShardRows.of(dataset, dtype=torch.float32, device=torch.device("cpu"))
    start = time.perf_counter()
    foundation.inputs.shard_rows(dataset, rows)
    reading = time.perf_counter() - start
    frozen = adapt(foundation, dataset, method="foundation", seed=seed).summary["splits"]["test"]
    with tempfile.TemporaryDirectory() as folder:
        foundation.save(Path(folder) / "foundation")
        path = Path(folder) / "foundation"
        run = adapt(foundation, dataset, out=Path(folder) / "run", foundation_path=path, seed=seed, rounds=rounds)
        adapted, history = run.summary["splits"]["test"], run.history
        uploaded = run.summary["bytes_up_per_user_round"]
        size = sum(file.stat().st_size for file in path.iterdir())
    took_part = sum(line["participants"] for line in history)
    return {
        "weights": foundation.n_weights,
        "share": 1.0,
        "megabytes": size / 1e6,
        "auc_frozen": frozen["auc"],
        "gauc_frozen": frozen["gauc"],
        "logloss_frozen": frozen["logloss"],
        "auc_adapted": adapted["auc"],
        "gauc_adapted": adapted["gauc"],
        "logloss_adapted": adapted["logloss"],
        "ms_reading": 1000 * reading / len(rows.users),
        "ms_round": 1000 * sum(line["seconds_train"] for line in history) / max(1, took_part),
        "bytes_up": uploaded,
    }


COLUMNS: Mapping[str, tuple[str, str]] = {
    "weights": ("weights", ",.0f"),
    "share": ("of the teacher", ".2f"),
    "megabytes": ("folder, MB", ".2f"),
    "auc_frozen": ("AUC frozen", ".4f"),
    "gauc_frozen": ("GAUC frozen", ".4f"),
    "logloss_frozen": ("log-loss frozen", ".4f"),
    "auc_adapted": ("AUC adapted", ".4f"),
    "gauc_adapted": ("GAUC adapted", ".4f"),
    "logloss_adapted": ("log-loss adapted", ".4f"),
    "ms_reading": ("reading, ms/user", ".2f"),
    "ms_round": ("round, ms/user", ".2f"),
    "bytes_up": ("bytes up/user and round", ",.0f"),
}


def table(found: Mapping[str, list[Figures]]) -> str:
    """Means over seeds in Markdown, those of quality with the standard deviation."""
    lines = [
        "| foundation | " + " | ".join(title for title, _ in COLUMNS.values()) + " |",
        "|---" * (1 + len(COLUMNS)) + "|",
    ]
    for name, rows in found.items():
        cells = (
            _cell([row[key] for row in rows], form, "frozen" in key or "adapted" in key)
            for key, (_, form) in COLUMNS.items()
        )
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(values: list[float], form: str, quality: bool) -> str:
    mean = format(statistics.fmean(values), form)
    return f"{mean} ± {statistics.stdev(values):.4f}" if quality and len(values) > 1 else mean


if __name__ == "__main__":
    main()
