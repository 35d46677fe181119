"""Measure two counters, the frozen foundation and FedPA on data sets, and print the table of the README.

    python benchmarks/results.py DATASET... --seeds 3

Every seed trains its own foundation and adapts it with both presets. Values are means over seeds on the test rows of
private users; brackets are the 95% bootstrap interval over users of the first seed.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fedpa import adapt, load_dataset, pretrain

METRICS = ("gauc", "auc", "logloss")
Reports = dict[str, list[dict[str, Any]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", type=Path, nargs="+")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--draws", type=int, default=1000)
    options = parser.parse_args()
    print("| data set | features | method | GAUC | AUC | logloss | best round |")
    print("|---|---|---|---|---|---|---|")
    for path in options.datasets:
        for line in table(path, options.seeds, options.draws):
            print(line, flush=True)


def table(path: Path, seeds: int, draws: int) -> Iterator[str]:
    """Rows of the table for one data set."""
    dataset = load_dataset(path)
    found: Reports = {}
    rounds: dict[str, list[int]] = {}
    for seed in range(seeds):
        foundation = pretrain(dataset, seed=seed)
        for preset in ("reference", "default"):
            with tempfile.TemporaryDirectory() as folder:
                run = adapt(foundation, dataset, out=Path(folder) / "run", preset=preset, seed=seed)
                reports = run.yardsticks("test", bootstrap=draws if seed == 0 else 0)
                rounds.setdefault(f"FedPA `{preset}`", []).append(run.summary["best_round"])
            for name, report in reports.items():
                title = f"FedPA `{preset}`" if name == "FedPA" else name
                if preset == "default" or name == "FedPA":
                    found.setdefault(title, []).append(report)
    features = dataset.manifest["settings"]["features"]
    order = ["two counters", "frozen foundation", "FedPA `reference`", "FedPA `default`", "oracle"]
    for name in (n for n in order if n in found):
        cells = " | ".join(cell(found[name], metric) for metric in METRICS)
        best = ", ".join(map(str, rounds.get(name, []))) or "-"
        yield f"| {dataset.manifest['source']} | {features} | {name} | {cells} | {best} |"


def cell(reports: list[dict[str, Any]], metric: str) -> str:
    """Mean over seeds, and the first seed's interval."""
    mean = float(np.mean([report[metric] for report in reports]))
    drawn = (reports[0]["bootstrap"] or {}).get("intervals", {}).get(metric)
    return f"{mean:.4f}" if drawn is None else f"{mean:.4f} [{drawn['low']:.3f}, {drawn['high']:.3f}]"


if __name__ == "__main__":
    main()
