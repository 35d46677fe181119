"""Measure two counters, the frozen foundation and FedPA on data sets, and print the table of the README.

    python benchmarks/results.py DATASET... --seeds 3

Every seed trains its own foundation and adapts it with both presets. Values are means over seeds on the test rows of
private users; brackets are 95% intervals over draws of users and, within, of seeds. The last column is the difference
to the frozen foundation of the same seed.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedpa import adapt, load_dataset, pretrain
from fedpa.data.dataset import Part
from fedpa.evaluation.bootstrap import Interval, bootstrap_users

Floats = npt.NDArray[np.floating]
METRICS = ("gauc", "auc", "logloss")
ORDER = ("two counters", "frozen foundation", "FedPA `reference`", "FedPA `default`", "oracle")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", type=Path, nargs="+")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--draws", type=int, default=1000)
    options = parser.parse_args()
    print("| data set | features | method | GAUC | AUC | logloss | best round | GAUC minus foundation's |")
    print("|---|---|---|---|---|---|---|---|")
    for path in options.datasets:
        for line in table(path, options.seeds, options.draws):
            print(line, flush=True)


def table(path: Path, seeds: int, draws: int) -> Iterator[str]:
    """Rows of the table for one data set."""
    dataset = load_dataset(path)
    scores: dict[str, list[Floats]] = {}
    rounds: dict[str, list[int]] = {}
    for seed in range(seeds):
        foundation = pretrain(dataset, seed=seed)
        for preset in ("reference", "default"):
            title = f"FedPA `{preset}`"
            with tempfile.TemporaryDirectory() as folder:
                run = adapt(foundation, dataset, out=Path(folder) / "run", preset=preset, seed=seed)
                rounds.setdefault(title, []).append(run.summary["best_round"])
                found = run.yardstick_scores("test")
            scores.setdefault(title, []).append(found.pop("FedPA"))
            if preset == "default":
                for name, one in found.items():
                    scores.setdefault(name, []).append(one)
    test = run.rows.part == Part.TEST
    users, labels = run.rows.users[run.rows.user][test], run.rows.labels.numpy()[test]
    features = dataset.manifest["settings"]["features"]
    for name in (n for n in ORDER if n in scores):
        drawn = bootstrap_users(users, labels, scores[name], baseline=scores["frozen foundation"], draws=draws)
        cells = " | ".join(cell(drawn.intervals[metric]) for metric in METRICS)
        best = ", ".join(map(str, rounds.get(name, []))) or "-"
        gain = "-" if name == "frozen foundation" else cell(drawn.differences["gauc"], "+")
        yield f"| {dataset.manifest['source']} | {features} | {name} | {cells} | {best} | {gain} |"


def cell(interval: Interval, sign: str = "") -> str:
    """A value with its interval."""
    return f"{interval.value:{sign}.4f} [{interval.low:{sign}.4f}, {interval.high:{sign}.4f}]"


if __name__ == "__main__":
    main()
