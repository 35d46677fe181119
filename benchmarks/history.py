"""What reading users' pasts is worth: foundations and their adaptation beside trees, with paired intervals.

    python benchmarks/history.py --dataset DATASET --seeds 5 --json

Every row of the table is a method on one kind of foundation; a foundation is pre-trained anew for every seed.
Differences of AUC and GAUC on test rows are taken to trees on everybody's training rows, without and with everybody's
item counts, with 95% intervals of users and seeds drawn in pairs. Where the truth is known, the share of the way from
the frozen foundation that reads no past to the oracle is given. ``--ablate`` leaves out one ingredient at a time.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt

from fedpa import Dataset, Foundation, Run, adapt, load_dataset, pretrain
from fedpa.data.dataset import Part
from fedpa.data.past import Past, Queries
from fedpa.evaluation.significance import compare_clicks
from fedpa.models.history import LightHistory

COUNTS: dict[str, Any] = {"item_counts": 16}
PLAIN: dict[str, Any] = {"reader": "none", "item_embedding": False}
TREES, COUNTED_TREES = "trees, everybody's rows", "trees, everybody's rows and item counts"
Scores = npt.NDArray[np.float32]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--ablate", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    dataset = load_dataset(options.dataset)
    study = Study(dataset)
    for seed in range(options.seeds):
        (ablations if options.ablate else rows)(study, seed)
    report = study.report(options.draws)
    print(json.dumps(report, indent=2) if options.json else markdown(report))


def rows(study: Study, seed: int) -> None:
    """The table's rows for one seed; what does not hang on it is measured once."""
    data = study.dataset
    if seed == 0:
        study.add("two counters", adapt(None, data, method="two-counters"))
        study.add("trees, open users' rows", adapt(None, data, method="trees", preset="open"))
        study.add(TREES, adapt(None, data, method="trees"))
        study.add(COUNTED_TREES, adapt(None, data, method="trees", **COUNTS))
        study.add("two counters, running", adapt(None, data, method="two-counters", history="online"))
    kinds: dict[str, dict[str, Any]] = {"no past": PLAIN, "light": {}, "transformer": {"reader": "transformer"}}
    for title, settings in kinds.items():
        foundation = study.pretrained(title, data, seed, settings)
        study.add(f"{title}: frozen", adapt(foundation, data, method="foundation"))
        study.add(f"{title}: frozen, item counts", adapt(foundation, data, method="foundation", **COUNTS))
        study.add(f"{title}: FedPA", adapt(foundation, data, seed=seed, **COUNTS))
        if title == "light":
            study.add(f"{title}: frozen, online", adapt(foundation, data, method="foundation", history="online"))
    study.add("light: trained on everybody's rows", adapt(None, data, method="pooled", seed=seed, **COUNTS))


def ablations(study: Study, seed: int) -> None:
    """The light foundation with everybody's item counts, frozen and adapted, without one ingredient at a time."""
    data = study.dataset
    if seed == 0:
        study.add(TREES, adapt(None, data, method="trees"))
        study.add(COUNTED_TREES, adapt(None, data, method="trees", **COUNTS))
    found = {
        "all": study.pretrained("all", data, seed, {}),
        "without the taste": study.pretrained("taste", data, seed, {"taste_width": 0}),
        "without item embeddings": study.pretrained("items", data, seed, {"item_embedding": False}),
    }
    for title, prefix in (("rates per kind of item", None), ("item and user rates", ("item_", "user_"))):
        with mock.patch("fedpa.models.learned.LightHistory", without(prefix)):
            found[f"without {title}"] = study.pretrained(title, data, seed, {})
    for title, foundation in found.items():
        study.add(f"frozen, {title}", adapt(foundation, data, method="foundation", **COUNTS))
    for title, preset, settings in (
        ("all", "default", COUNTS),
        ("without everybody's item counts", "default", {"item_counts": 0}),
        ("without LoRA", "no-lora", COUNTS),
        ("without item biases", "no-item-bias", COUNTS),
        ("without the user's bias", "no-user-bias", COUNTS),
        ("without the wide term", "no-wide", COUNTS),
        ("without personal embeddings", "no-personal-embeddings", COUNTS),
    ):
        study.add(f"FedPA, {title}", adapt(found["all"], data, seed=seed, preset=preset, **settings))


def without(prefixes: tuple[str, ...] | None) -> type[LightHistory]:
    """A light reader that says zero in the columns of some names; None stands for those per kind of item."""

    class Silent(LightHistory):
        def read(self, past: Past, kinds: npt.NDArray[np.integer], queries: Queries) -> Scores:
            found = super().read(past, kinds, queries)
            for column, name in enumerate(self.names):
                kind = not name.startswith(("item_", "user_")) and name not in ("taste", "lean")
                if kind if prefixes is None else name.startswith(prefixes):
                    found[..., column] = 0
            return found

    return Silent


class Study:
    """Scores of test rows by title, run by run."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self.scores: dict[str, list[Scores]] = {}
        self.facts: dict[str, dict[str, Any]] = {}
        self.seconds: dict[str, list[float]] = {}

    def pretrained(self, title: str, dataset: Dataset, seed: int, settings: dict[str, Any]) -> Foundation:
        """A foundation for one seed."""
        begin = time.perf_counter()
        foundation = pretrain(dataset, seed=seed, **settings)
        self.seconds.setdefault(title, []).append(time.perf_counter() - begin)
        return foundation

    def add(self, title: str, run: Run) -> None:
        """Note a run's scores."""
        here = run.rows.part == Part.TEST
        self.user, self.label, self.row = run.rows.user[here], run.rows.labels.numpy()[here], run.rows.row[here]
        self.scores.setdefault(title, []).append(np.asarray(run.scores[here], np.float32))
        self.facts[title] = {
            "seconds_per_round": run.summary["seconds_per_round"],
            "bytes_up_per_user_round": run.summary["bytes_up_per_user_round"],
        }

    def report(self, draws: int) -> dict[str, Any]:
        """Values, differences and shares of the way to the oracle."""
        scores: dict[str, Any] = {title: np.stack(runs) for title, runs in self.scores.items()}
        if self.dataset.oracle is not None:
            scores["oracle"] = self.dataset.oracle[self.row][None]
        compared = compare_clicks(self.user, self.label, scores, references=[TREES, COUNTED_TREES], draws=draws)
        found: dict[str, Any] = {
            title: {
                name: {"value": interval.value, "low": interval.low, "high": interval.high}
                for name, interval in metrics.items()
            }
            for title, metrics in compared.intervals.items()
        }
        table = {}
        for title, values in found.items():
            table[title] = {**values, **self.facts.get(title, {}), "runs": len(scores[title])}
            for reference in (TREES, COUNTED_TREES):
                if title != reference:
                    table[title][f"against {reference}"] = {
                        name: {"gain": each.value, "low": each.low, "high": each.high}
                        for name, each in compared.differences[reference][title].items()
                        if name in ("auc", "gauc")
                    }
        if "oracle" in table and "no past: frozen" in table:
            for values in table.values():
                values["way_to_oracle"] = {name: way(table, values, name) for name in ("auc", "gauc")}
        return {
            "dataset": str(self.dataset.path),
            "users": len(np.unique(self.user)),
            "seconds_to_pretrain": {title: min(each) for title, each in self.seconds.items()},
            "rows": table,
        }


def way(table: dict[str, Any], values: dict[str, Any], name: str) -> float:
    """Share of the way from the frozen foundation that reads no past to the oracle."""
    begin, end = table["no past: frozen"][name]["value"], table["oracle"][name]["value"]
    return float((values[name]["value"] - begin) / (end - begin))


def markdown(report: dict[str, Any]) -> str:
    """The table for people."""

    def cell(values: dict[str, Any], reference: str, name: str) -> str:
        gain = values.get(f"against {reference}", {}).get(name)
        return "" if gain is None else f"{gain['gain']:+.4f} [{gain['low']:+.4f}, {gain['high']:+.4f}]"

    lines = [
        "| | AUC | GAUC | log-loss | GAUC against trees | AUC against trees | GAUC against trees with item counts |",
        "|---|---|---|---|---|---|---|",
    ]
    for title, values in report["rows"].items():
        numbers = " | ".join(f"{values[name]['value']:.4f}" for name in ("auc", "gauc", "logloss"))
        gains = (cell(values, TREES, "gauc"), cell(values, TREES, "auc"), cell(values, COUNTED_TREES, "gauc"))
        lines.append(f"| {title} | {numbers} | {' | '.join(gains)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
