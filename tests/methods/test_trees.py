"""Boosted trees: a closed form for one tree, and nothing that moves with a label that they may not know."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss

from fedpa.adaptation import adapt
from fedpa.artifacts import sha256
from fedpa.data.dataset import PRIVATE, Dataset, Part
from fedpa.data.prepare import prepare
from fedpa.data.sources import open_source
from fedpa.errors import ArtifactError, ConfigError
from fedpa.federation.rows import ShardRows
from fedpa.methods import title_of, trees
from fedpa.methods.trees import Trees, TreesSettings
from fedpa.run import Run, load_run
from prepared import Small, small

QUICK: dict[str, Any] = {"trees": 60, "min_rows_per_leaf": 20}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return small(tmp_path_factory)


@pytest.fixture(scope="module")
def run(made: Small, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return adapt(None, made.dataset, out=tmp_path_factory.mktemp("trees") / "run", method="trees", **QUICK)


def grown(data: Dataset, out: Path, **settings: Any) -> Run:
    return adapt(None, data, out=out, method="trees", **QUICK | settings)


def turned(data: Dataset, monkeypatch: pytest.MonkeyPatch, *parts: Part) -> Dataset:
    """The same data set with the labels of some parts of the private users turned."""
    fresh = Dataset(data.path)
    here = np.isin(fresh.part, parts) & (fresh.side[fresh.user] == PRIVATE)
    assert here.any()
    monkeypatch.setattr(Dataset, "label", np.where(here, 1 - fresh.label, fresh.label))
    return fresh


def test_it_is_better_than_a_constant(run: Run) -> None:
    labels = run.rows.labels.numpy()
    for part in (Part.TRAIN, Part.TEST):
        here = run.rows.part == part
        assert log_loss(labels[here], run.scores[here]) < log_loss(labels[here], np.full(here.sum(), labels.mean()))
    assert run.summary["splits"]["test"]["auc"] > 0.55


def test_one_tree_of_two_leaves_is_one_newton_step(
    made: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the log-odds of the click rate p, a leaf moves by lr (clicks - n p) / (n p (1 - p))."""
    monkeypatch.setattr(trees, "CATEGORIES", 0)
    run = grown(made.dataset, tmp_path / "run", trees=1, leaves=2, learning_rate=0.5)
    data, rows = made.dataset, run.rows
    columns = trees._Columns.open(data, Part.FOUNDATION).joined(trees._Columns.of(rows).at(rows.part == Part.TRAIN))
    method = run.method
    assert isinstance(method, Trees)
    assert method._booster is not None
    scores = np.asarray(method._booster.predict(columns.matrix(data)))
    p = columns.label.mean()
    leaves = np.unique(scores)
    assert len(leaves) == 2
    for leaf in leaves:
        clicks = columns.label[scores == leaf]
        step = 0.5 * (clicks.sum() - len(clicks) * p) / (len(clicks) * p * (1 - p))
        assert leaf == pytest.approx(1 / (1 + np.exp(-(np.log(p / (1 - p)) + step))), abs=1e-6)


def test_columns_are_codes_and_smoothed_counters(made: Small, run: Run) -> None:
    data, rows = made.dataset, run.rows
    matrix = trees._Columns.of(rows).matrix(data)
    k = int(np.argmax(rows.item_views * (rows.own_views > 0)))
    row = rows.row[k]
    prior = (rows.open_clicks[k] + 1) / (rows.open_views[k] + 2)
    expected = [
        *data.user_codes[data.user[row]],
        *data.item_codes[data.item[row]],
        *data.context_codes[row],
        (rows.item_clicks[k] + 20 * prior) / (rows.item_views[k] + 20),
        rows.item_views[k],
        (rows.own_clicks[k] + 5 * prior) / (rows.own_views[k] + 5),
        rows.own_views[k],
    ]
    assert matrix[k].tolist() == pytest.approx(expected, rel=1e-6)
    opened = trees._Columns.open(data, Part.FOUNDATION)
    first = data.rows("foundation")[0]
    assert opened.matrix(data)[0, -3:].tolist() == pytest.approx(
        [
            data.item_views[first],
            (data.user_clicks[first] + 5 * (data.open_clicks[first] + 1) / (data.open_views[first] + 2))
            / (data.user_views[first] + 5),
            data.user_views[first],
        ],
        rel=1e-6,
    )


def test_only_short_vocabularies_are_categorical(made: Small) -> None:
    features = [*made.dataset.manifest["features"]["user"], *made.dataset.manifest["features"]["item"]]
    chosen = [features[k] for k in trees._categorical(made.dataset)]
    assert chosen
    assert all(f["kind"] == "categorical" and f["size"] <= trees.CATEGORIES for f in chosen)
    others = [f for f in features if f not in chosen]
    assert all(f["kind"] == "numeric" or f["size"] > trees.CATEGORIES for f in others)


def test_row_features_are_categorical(made: Small, tmp_path: Path) -> None:
    source = open_source("kuairand-pure", made.folder / "raw")
    data = prepare(source, tmp_path / "dataset", row_features=["tab", "hour"])
    features = [*data.user_features, *data.item_features, *data.context_features]
    assert [features[k].name for k in trees._categorical(data)[-2:]] == ["row:tab", "row:hour"]
    run = grown(data, tmp_path / "run")
    assert trees._Columns.of(run.rows).matrix(data)[:, trees._categorical(data)[-2:]].max() > 1


@pytest.mark.parametrize("part", [Part.TEST, Part.VAL, Part.TRAIN])
def test_test_labels_move_nothing(
    made: Small, run: Run, tmp_path: Path, part: Part, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor do validation labels, but for the number of trees that is kept."""
    other = grown(turned(made.dataset, monkeypatch, part), tmp_path / "other")
    ours, theirs = run.path / "trees.txt", other.path / "trees.txt"
    if part == Part.TEST:
        assert sha256(theirs) == sha256(ours)
        assert np.array_equal(other.scores, run.scores)
    elif part == Part.TRAIN:
        assert sha256(theirs) != sha256(ours)
    else:
        one, two = (_trees_of(file) for file in (ours, theirs))
        both = min(len(one), len(two))
        assert both
        assert one[:both] == two[:both]


def test_open_rows_alone_know_no_private_label(made: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = grown(made.dataset, tmp_path / "one", preset="open")
    data = turned(made.dataset, monkeypatch, Part.TRAIN, Part.VAL, Part.TEST)
    two = grown(data, tmp_path / "two", preset="open")
    assert sha256(one.path / "trees.txt") == sha256(two.path / "trees.txt")
    assert "on open rows" in one.method.inputs
    assert title_of("trees+open") == "boosted trees, open users"


def test_equal_bytes_whatever_the_seed_and_foundation(made: Small, run: Run, tmp_path: Path) -> None:
    same = adapt(made.foundation, made.dataset, out=tmp_path / "run", method="trees", seed=5, **QUICK)
    for name in ("trees.txt", "trees.json"):
        assert sha256(same.path / name) == sha256(run.path / name)
    assert not Trees.seeds_matter


def test_a_reopened_run_scores_the_same(made: Small, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trees, "_ROWS", 100)
    assert np.array_equal(load_run(run.path, dataset=Dataset(made.dataset.path)).scores, run.scores)


def test_scores_follow_the_rows_given(made: Small, run: Run) -> None:
    """Made-up rows are scored by what stands in them, whatever row of the data set is behind."""
    rows, method = run.rows, run.method
    moved = np.random.default_rng(0).permutation(len(rows.row))
    names = ("user", "items", "context", "own_views", "own_clicks", "item_views", "item_clicks")
    taken: dict[str, Any] = {name: getattr(rows, name)[moved] for name in (*names, "open_views", "open_clicks")}
    made_up = replace(rows, row=np.full_like(rows.row, -1), labels=rows.labels * 0, **taken)
    assert isinstance(method, Trees)
    assert np.array_equal(method.scores(None, made.dataset, made_up), run.scores[moved])
    nothing = ShardRows.of(made.dataset, np.zeros(0, np.int64), dtype=torch.float32, device=torch.device("cpu"))
    assert method.scores(None, made.dataset, nothing).shape == (0,)


def test_no_patience_keeps_the_best_number_of_all(made: Small, tmp_path: Path) -> None:
    """The held-out log-loss has a second, lower minimum that five trees of patience do not reach."""
    stopped, endless = (grown(made.dataset, tmp_path / str(p), trees=40, learning_rate=0.1, patience=p) for p in (5, 0))
    few, many = (json.loads((run.path / "trees.json").read_text()) for run in (stopped, endless))
    assert few["trees"] + 5 < many["trees"] < 40
    assert many["held_out"]["logloss"] < few["held_out"]["logloss"]
    assert len(_trees_of(endless.path / "trees.txt")) == many["trees"]


def test_without_lightgbm_the_extra_is_named(made: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    with pytest.raises(ConfigError, match=r"fedpa\[trees\]"):
        adapt(None, made.dataset, out=tmp_path / "run", method="trees")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_damaged_trees_are_refused(made: Small, tmp_path: Path, damage: str) -> None:
    run = grown(made.dataset, tmp_path / "run", trees=2)
    rows, file = run.rows, run.path / "trees.txt"
    if damage == "missing":
        file.unlink()
    else:
        file.write_text(file.read_text()[:-200])
    with pytest.raises(ArtifactError, match=r"(?s)trees\.txt.*adapt again"):
        _ = load_run(run.path, dataset=made.dataset).scores
    with pytest.raises(ConfigError, match="nothing was trained"):
        Trees(TreesSettings()).scores(None, made.dataset, rows)


def _trees_of(file: Path) -> list[str]:
    """The trees of a saved model, as text."""
    return [tree.strip() for tree in file.read_text().split("end of trees")[0].split("\nTree=")[1:]]
