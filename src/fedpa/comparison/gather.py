"""From cells to results: one row per task and method, over its seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fedpa.comparison.cells import Cell, Cells
from fedpa.comparison.plan import Planned
from fedpa.comparison.results import (
    DatasetSummary,
    Difference,
    Measured,
    Results,
    Round,
    Row,
    TaskResults,
    write_results,
)
from fedpa.data.dataset import Dataset, Part
from fedpa.evaluation.significance import Significance, compare_clicks, compare_users
from fedpa.federation.rows import ShardRows
from fedpa.methods import find_method, parse_spec, title_of

__all__ = ["REFERENCES", "average", "gather"]

REFERENCES = ("foundation", "head-only", "user-bias", "biases", "two-counters")
"""What methods are compared with, where it is among the compared ones."""

Content = Mapping[str, Any]


def _order(name: str) -> tuple[bool, bool]:
    return ("sampled" in name, name.startswith("hr@"))


def gather(
    out: Path,
    planned: Sequence[Planned],
    datasets: Mapping[str, Dataset],
    *,
    draws: int,
    failed: Mapping[str, str],
    command: str = "",
) -> Results:
    """Read all finished cells, compare the methods and write the results.

    Parameters
    ----------
    out : Path
        Folder of the comparison.
    planned : sequence of Planned
    datasets : mapping
        By task.
    draws : int
        Of users, for intervals.
    failed : mapping
        Cells that failed and why.
    command : str
        That makes these results.
    """
    cells = Cells(out / "cells")
    tasks = [_task(cells, task, data, _by_spec(planned, task), draws, failed) for task, data in datasets.items()]
    done = [content for one in planned if (content := cells.read(one.cell)) is not None]
    results = Results(
        dataset=_summary(next(iter(datasets.values()))),
        seeds=1 + max(one.cell.seed for one in planned),
        draws=draws,
        command=command,
        seconds=sum(content.get("seconds") or 0.0 for content in done),
        trials=max((one.note["trials"] for one in planned), default=0) or None,
        tasks=tasks,
        failed=dict(failed),
    )
    write_results(out, results)
    return results


def _summary(dataset: Dataset) -> DatasetSummary:
    manifest = dataset.manifest
    counts = manifest["counts"]
    sides = {f"{side} users": count for side, count in counts["sides"].items() if count}
    return DatasetSummary(
        name=manifest["source"],
        hash=dataset.hash,
        split=manifest["settings"].get("split", ""),
        features=", ".join([manifest["settings"]["features"], *(name for name, _ in dataset.row_features)]),
        counts={**sides, "items": counts["items"], "rows": counts["rows"]},
    )


def _task(
    cells: Cells,
    task: str,
    dataset: Dataset,
    planned: Mapping[str, Sequence[Planned]],
    draws: int,
    failed: Mapping[str, str],
) -> TaskResults:
    rows = [_row(cells, spec, mine, failed) for spec, mine in planned.items()]
    seeds = {row.method: row.seeds for row in rows if row.seeds}
    found = (_clicks if task == "click" else _ranks)(cells, seeds, task, dataset, draws) if seeds else None
    return TaskResults(
        task="click" if task == "click" else "topk",
        reference=[] if found is None else list(found.differences),
        metrics=[] if found is None else list(found.intervals[next(iter(seeds))]),
        users=None if found is None else found.users,
        test_rows=len(dataset.rows(Part.TEST)),
        rows=rows if found is None else [_judged(row, found) for row in rows],
    )


def _by_spec(planned: Sequence[Planned], task: str) -> dict[str, list[Planned]]:
    found: dict[str, list[Planned]] = {}
    for one in planned:
        if one.cell.task == task:
            found.setdefault(one.cell.spec, []).append(one)
    return found


def _row(cells: Cells, spec: str, planned: Sequence[Planned], failed: Mapping[str, str]) -> Row:
    """All of a row but what compares it with others."""
    name, preset = parse_spec(spec)
    method = find_method(name)
    first = planned[0]
    done = [one for one in planned if str(one.cell) not in failed]
    contents = [content for one in done if (content := cells.read(one.cell)) is not None]
    summaries = [content["summary"] for content in contents]
    parameters = summaries[0]["parameters"] if summaries else {}
    reasons = {reason: None for one in planned if (reason := failed.get(str(one.cell)))}
    return Row(
        method=spec,
        title=title_of(spec) + ("" if len(done) == len(planned) else f" ({len(done)} of {len(planned)} seeds)"),
        family=method.family,
        inputs=method.configured(preset, first.settings).inputs,
        settings=first.settings,
        settings_from=first.note["settings_from"],
        trials=first.note["trials"] or None,
        seeds=[one.cell.seed for one in done],
        bytes_up=_mean([summary["bytes_up_per_user_round"] for summary in summaries]),
        bytes_down=_mean([summary["bytes_down_per_user_round"] for summary in summaries]),
        rounds=[summary["rounds"] for summary in summaries],
        best_rounds=[summary["best_round"] for summary in summaries],
        rounds_to_99=[content["rounds_to_99"] for content in contents],
        device_seconds=_mean([content["device_seconds"] for content in contents]),
        parameters=parameters,
        device_parameters=sum(
            size for scope, size in parameters.items() if scope == "personal" or scope.endswith("kept")
        )
        if contents
        else None,
        by_round=_by_round([content["history"] for content in contents]) if first.cell.task == "click" else [],
        by_history=average([content.get("by_history") or {} for content in contents]),
        by_group=average([content.get("by_group") or {} for content in contents]),
        cold=average([content["cold"] for content in contents if content["cold"]]) or None,
        error=None if contents else "; ".join(reasons),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def average(contents: Sequence[Content]) -> dict[str, Any]:
    """Numbers averaged over seeds, key by key; what is no number is left out, and what is the same stays as it is."""
    found: dict[str, Any] = {}
    for key in dict.fromkeys(key for content in contents for key in content):
        values = [content.get(key) for content in contents]
        inner = [value for value in values if isinstance(value, Mapping)]
        if inner:
            found[key] = average(inner)
        elif all(value is None or (isinstance(value, int | float) and not isinstance(value, bool)) for value in values):
            found[key] = values[0] if len(set(values)) == 1 else _mean(values)
    return {key: value for key, value in found.items() if value != {}}


def _by_round(histories: Sequence[Sequence[Content]]) -> list[Round]:
    """Test values of every round, averaged over the seeds that came so far; none for what has no rounds."""
    last = max((line["round"] for history in histories for line in history), default=0)
    found = []
    for number in range(last + 1 if last else 0):
        lines = [line["test"] for history in histories for line in history if line["round"] == number]
        found.append(Round(round=number, seeds=len(lines), metrics=average(lines)))
    return found


def _references(found: Mapping[str, object]) -> list[str]:
    return [reference for reference in REFERENCES if reference in found]


def _clicks(cells: Cells, seeds: Mapping[str, Sequence[int]], task: str, dataset: Dataset, draws: int) -> Significance:
    """Click metrics of the private users' test rows."""
    shown = ShardRows.of(dataset, dtype=torch.float32, device=torch.device("cpu"))
    here = shown.part == Part.TEST
    scores = {
        spec: np.stack([cells.arrays(Cell(task, spec, seed))["scores"] for seed in some])
        for spec, some in seeds.items()
    }
    labels = shown.labels.numpy()[here].astype(np.int8)
    return compare_clicks(shown.user[here], labels, scores, references=_references(scores), draws=draws)


def _ranks(cells: Cells, seeds: Mapping[str, Sequence[int]], task: str, dataset: Dataset, draws: int) -> Significance:
    """Hit rate and NDCG of the left-out items, in the whole catalogue and among drawn ones."""
    values = {
        spec: _stacked([_per_user(cells.arrays(Cell(task, spec, seed))) for seed in some])
        for spec, some in seeds.items()
    }
    return compare_users(values, references=_references(values), draws=draws)


def _per_user(arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    # The first two are the ones that tables show.
    return {name: arrays[name] for name in sorted(arrays, key=_order) if "@" in name}


def _stacked(runs: Sequence[Mapping[str, npt.NDArray[Any]]]) -> dict[str, npt.NDArray[Any]]:
    return {name: np.stack([run[name] for run in runs]) for name in runs[0]}


def _judged(row: Row, found: Significance) -> Row:
    """The row with intervals, values by seed and differences."""
    spec = row.method
    if spec not in found.intervals:
        return row
    measured = {
        name: Measured(value=one.value, low=one.low, high=one.high) for name, one in found.intervals[spec].items()
    }
    differences = {
        reference: {
            name: Difference(value=one.value, low=one.low, high=one.high, p=one.p, p_holm=one.p_holm)
            for name, one in methods[spec].items()
        }
        for reference, methods in found.differences.items()
        if spec in methods
    }
    return row.model_copy(update={"metrics": measured, "by_seed": found.by_seed[spec], "differences": differences})
