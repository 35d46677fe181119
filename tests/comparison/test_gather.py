"""Rows of results are means over seeds of what the cells hold."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from fedpa.comparison.cells import Cell, Cells
from fedpa.comparison.compare import compare
from fedpa.comparison.gather import REFERENCES, average, gather
from fedpa.comparison.plan import plan
from fedpa.comparison.results import Results
from fedpa.comparison.tables import terminal_tables
from fedpa.data.dataset import Part
from prepared import Small, small


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return small(tmp_path_factory)


@pytest.fixture(scope="module")
def results(world: Small, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Results]:
    out = tmp_path_factory.mktemp("results") / "comparison"
    methods = ("two-counters", "foundation", "fedpa")
    settings = {"rounds": 1}
    return out, compare(world.dataset, out=out, methods=methods, seeds=2, jobs=1, draws=50, settings=settings)


def test_metrics_are_those_of_the_scores(world: Small, results: tuple[Path, Results]) -> None:
    out, found = results
    rows = {row.method: row for row in found.tasks[0].rows}
    assert [rows[name].seeds for name in ("two-counters", "foundation", "fedpa")] == [[0], [0, 1], [0, 1]]
    labels = world.dataset.label[world.dataset.rows(Part.TEST)]
    cells = Cells(out / "cells")
    scores = [cells.arrays(Cell("click", "fedpa", seed))["scores"] for seed in (0, 1)]
    aucs = [roc_auc_score(labels, one) for one in scores]
    assert rows["fedpa"].by_seed["auc"] == pytest.approx(aucs)
    assert rows["fedpa"].metrics["auc"].value == pytest.approx(np.mean(aucs))
    losses = [log_loss(labels, one) for one in scores]
    assert rows["fedpa"].metrics["logloss"].value == pytest.approx(np.mean(losses), rel=1e-6)
    frozen = [cells.arrays(Cell("click", "foundation", seed))["scores"] for seed in (0, 1)]
    gain = np.mean(aucs) - np.mean([roc_auc_score(labels, one) for one in frozen])
    assert rows["fedpa"].differences["foundation"]["auc"].value == pytest.approx(gain)
    assert rows["foundation"].differences.keys() == {"two-counters"}


def test_a_row_says_what_it_took(results: tuple[Path, Results]) -> None:
    out, found = results
    row = found.tasks[0].rows[2]
    cells = Cells(out / "cells")
    contents = [cells.read(Cell("click", "fedpa", seed)) or {} for seed in (0, 1)]
    assert row.best_rounds == [content["summary"]["best_round"] for content in contents]
    assert row.rounds == [1, 1]
    assert row.bytes_up == np.mean([content["summary"]["bytes_up_per_user_round"] for content in contents])
    assert row.device_parameters == row.parameters["personal"]
    assert row.title == "FedPA, extended"
    last = [content["history"][1]["test"]["auc"] for content in contents]
    assert row.by_round[1].metrics["auc"] == pytest.approx(np.mean(last))
    bins = [content["by_history"]["5-9"]["auc"] for content in contents]
    assert row.by_history["5-9"]["auc"] == pytest.approx(np.mean(bins))
    assert (row.cold or {}).keys() == {"support_0", "support_1", "support_3", "support_5"}


def test_what_a_device_keeps_and_how_many_seeds_there_are(
    world: Small, results: tuple[Path, Results], tmp_path: Path
) -> None:
    out = tmp_path / "copy"
    shutil.copytree(results[0], out)
    cells, cell = Cells(out / "cells"), Cell("click", "fedpa", 0)
    content, arrays = cells.read(cell) or {}, cells.arrays(cell)
    content["summary"]["parameters"] = {
        "frozen": 1,
        "shared": 20,
        "shared, kept": 300,
        "group(age)": 4_000,
        "group(age), kept": 50_000,
        "personal": 600_000,
    }
    cells.write(cell, content, arrays)
    datasets = {"click": world.dataset}
    planned = plan(("two-counters", "foundation", "fedpa"), datasets, 2, "any", False, {"rounds": 1})
    found = gather(out, planned, datasets, draws=20, failed={"click fedpa seed 1": "out of luck"})
    rows = {row.method: row for row in found.tasks[0].rows}
    assert rows["fedpa"].device_parameters == 300 + 50_000 + 600_000
    assert [row.title for row in rows.values()] == [
        "two counters", "frozen foundation", "FedPA, extended (1 of 2 seeds)",
    ]  # fmt: skip
    assert (rows["fedpa"].seeds, rows["fedpa"].error) == ([0], None)
    assert rows["two-counters"].inputs == "counters"


def test_item_and_user_biases_are_a_reference(results: tuple[Path, Results]) -> None:
    assert REFERENCES == ("foundation", "head-only", "user-bias", "biases", "two-counters")
    assert results[1].tasks[0].reference == ["foundation", "two-counters"]  # those among the compared


def test_average_is_over_what_is_known() -> None:
    found = average([{"a": 1, "b": {"c": None, "why": "x"}, "d": None}, {"a": 2, "b": {"c": 3}, "d": None}])
    assert found == {"a": 1.5, "b": {"c": 3.0}, "d": None}
    assert average([{"users": 7}, {"users": 7}]) == {"users": 7}


@pytest.mark.slow
def test_both_tasks(world: Small, tmp_path: Path) -> None:
    options: dict[str, Any] = {"seeds": 1, "jobs": 1, "draws": 20, "settings": {"rounds": 1}}
    methods = ("two-counters", "foundation", "fedpa")
    found = compare(world.dataset, out=tmp_path / "out", methods=methods, tasks=("click", "topk"), **options)
    assert found.failed == {}
    rows = {row.method: row for row in found.tasks[1].rows}
    cells = Cells(tmp_path / "out" / "cells")
    for name, row in rows.items():
        content = cells.read(Cell("topk", name, 0)) or {}
        assert list(row.metrics) == ["ndcg@10", "hr@10", "ndcg@10_sampled99", "hr@10_sampled99"]
        for metric, values in row.metrics.items():
            assert values.value == pytest.approx(content["metrics"][metric])
        arrays = cells.arrays(Cell("topk", name, 0))
        assert len(arrays["users"]) == content["metrics"]["users"] > 0
        # Without ties a hit is a rank within the first ten.
        whole = arrays["rank"] == np.floor(arrays["rank"])
        hits = arrays["rank"] <= 10
        assert arrays["hr@10"][whole & hits].min() > 0.5
    assert rows["fedpa"].differences.keys() == {"foundation", "two-counters"}
    assert len(terminal_tables(found)) == 2
