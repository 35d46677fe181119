"""Pooled training is pre-training with more rows: no test label moves it, and without private rows it is the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss, roc_auc_score

from fedpa.adaptation import adapt
from fedpa.artifacts import sha256
from fedpa.data.dataset import PRIVATE, Dataset, Part
from fedpa.errors import ArtifactError, ConfigError
from fedpa.federation.rows import ShardRows
from fedpa.methods.pooled import Pooled, PooledSettings
from fedpa.models.foundation import Foundation, load_foundation
from fedpa.models.pretrain import pretrain
from fedpa.run import Run, load_run
from prepared import Small, small

PLAIN: dict[str, Any] = {"reader": "none", "item_embedding": False, "embedding": 8, "weight_decay": 0.0}
QUICK: dict[str, Any] = {"epochs": 5, "lr": 0.01, "batch_size": 128, **PLAIN}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return small(tmp_path_factory)


@pytest.fixture(scope="module")
def run(made: Small, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return adapt(None, made.dataset, out=tmp_path_factory.mktemp("pooled") / "run", method="pooled", **QUICK)


def pooled(made: Small, out: Path, dataset: Dataset | None = None, **settings: Any) -> Run:
    return adapt(made.foundation, dataset or made.dataset, out=out, method="pooled", **QUICK | settings)


def trained_hash(run: Run) -> str:
    return load_foundation(run.path / "pooled").hash


def turned(data: Dataset, monkeypatch: pytest.MonkeyPatch, part: Part) -> Dataset:
    """The same data set with the labels of one part of the private users turned."""
    fresh = Dataset(data.path)
    here = (fresh.part == part) & (fresh.side[fresh.user] == PRIVATE)
    assert here.any()
    monkeypatch.setattr(Dataset, "label", np.where(here, 1 - fresh.label, fresh.label))
    return fresh


def test_it_trains_on_both_sides_and_is_better_than_a_constant(made: Small, run: Run) -> None:
    data = made.dataset
    facts = load_foundation(run.path / "pooled").facts
    assert facts["rows"] == len(data.rows("foundation", "train"))
    assert facts["held_out"]["rows"] == len(data.rows("foundation_val", "val"))
    labels, train = run.rows.labels.numpy(), run.rows.part == Part.TRAIN
    assert roc_auc_score(labels[train], run.scores[train]) > 0.6
    assert log_loss(labels[train], run.scores[train]) < log_loss(labels[train], np.full(train.sum(), labels.mean()))
    assert run.summary["splits"]["test"]["auc"] > 0.55


def test_the_held_out_value_is_that_of_the_kept_weights(made: Small, run: Run) -> None:
    data, trained = made.dataset, load_foundation(run.path / "pooled")
    rows = data.rows("foundation_val", "val")
    codes = data.user_codes[data.user[rows]], data.item_codes[data.item[rows]], data.context_codes[rows]
    with torch.inference_mode():
        scores = trained.model(*(torch.from_numpy(c).long() for c in codes)).sigmoid().double().numpy()
    assert trained.facts["held_out"]["logloss"] == pytest.approx(log_loss(data.label[rows], scores), abs=1e-5)
    by_row = dict(zip(run.rows.row, run.scores, strict=True))
    private = [k for k, row in enumerate(rows) if row in by_row]
    assert np.allclose(scores[private], [by_row[rows[k]] for k in private], atol=1e-6)


@pytest.mark.parametrize("part", [Part.TEST, Part.VAL, Part.TRAIN])
def test_test_labels_move_nothing(
    made: Small, run: Run, tmp_path: Path, part: Part, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor do validation labels, but for the epoch that is kept."""
    other = pooled(made, tmp_path / "other", turned(made.dataset, monkeypatch, part))
    if part == Part.TEST:
        assert sha256(other.path / "pooled/foundation.safetensors") == sha256(
            run.path / "pooled/foundation.safetensors"
        )
        assert np.array_equal(other.scores, run.scores)
    elif part == Part.TRAIN:
        assert trained_hash(other) != trained_hash(run)
    else:
        kept = load_foundation(other.path / "pooled").facts["best_epoch"]
        monkeypatch.undo()
        assert trained_hash(other) == trained_hash(pooled(made, tmp_path / "short", epochs=kept))


def test_equal_seeds_give_equal_bytes(made: Small, run: Run, tmp_path: Path) -> None:
    """With a foundation at hand or, as `run`, without."""
    same = pooled(made, tmp_path / "same")
    for name in ("manifest.json", "foundation.safetensors"):
        assert sha256(same.path / "pooled" / name) == sha256(run.path / "pooled" / name)
    assert trained_hash(pooled(made, tmp_path / "other", seed=1)) != trained_hash(run)


def test_without_private_rows_it_is_pretraining(made: Small, tmp_path: Path) -> None:
    rows = ShardRows.of(made.dataset, np.zeros(0, np.int64), dtype=torch.float32, device=CPU)
    method = Pooled(PooledSettings(**QUICK))
    method.fit(None, made.dataset, rows, seed=3, folder=tmp_path)
    found, expected = load_foundation(tmp_path / "pooled"), pretrain(made.dataset, seed=3, **QUICK)
    assert found.hash == expected.hash
    assert found.facts == expected.facts


def test_a_reopened_run_scores_the_same(made: Small, run: Run) -> None:
    assert np.array_equal(load_run(run.path, dataset=Dataset(made.dataset.path)).scores, run.scores)


def test_scores_follow_the_rows_given(made: Small, run: Run) -> None:
    """Made-up rows are scored by their own user, item and context, whatever row of the data set stands behind."""
    rows = run.rows
    moved = np.random.default_rng(0).permutation(len(rows.row))
    taken: dict[str, Any] = {"user": rows.user[moved], "items": rows.items[moved], "context": rows.context[moved]}
    method = run.method
    assert isinstance(method, Pooled)
    made_up = replace(rows, row=np.full_like(rows.row, -1), labels=rows.labels * 0, **taken)
    assert np.allclose(method.scores(None, made.dataset, made_up), run.scores[moved], atol=1e-6)


def test_from_the_foundation_never_ends_below_it(made: Small, tmp_path: Path) -> None:
    """A step far too large only worsens the held-out log-loss, so the start is kept; a small one improves it."""
    wild = pooled(made, tmp_path / "wild", preset="from-foundation", lr=50)
    assert trained_hash(wild) == made.foundation.hash
    calm = pooled(made, tmp_path / "calm", preset="from-foundation")
    facts = load_foundation(calm.path / "pooled").facts
    assert facts["best_epoch"] > 0
    assert facts["held_out"]["logloss"] < load_foundation(wild.path / "pooled").facts["held_out"]["logloss"]
    now = Foundation.of(made.foundation.model, made.foundation.features, {})
    assert now.hash == made.foundation.hash, "the foundation itself is not to be trained"
    with pytest.raises(ConfigError, match="pooled: needs a foundation"):
        adapt(None, made.dataset, out=tmp_path / "run", method="pooled", preset="from-foundation")


def test_no_patience_trains_to_the_end(made: Small, tmp_path: Path) -> None:
    wild: dict[str, Any] = {"epochs": 6, "lr": 0.3, "batch_size": 64, **PLAIN}
    stopped = pooled(made, tmp_path / "stopped", patience=1, **wild)
    assert load_foundation(stopped.path / "pooled").facts["epochs"] < 6
    endless = pooled(made, tmp_path / "endless", patience=0, **wild)
    assert load_foundation(endless.path / "pooled").facts["epochs"] == 6


def test_a_run_without_its_model_is_refused(made: Small, tmp_path: Path) -> None:
    short = pooled(made, tmp_path / "run", epochs=1)
    rows = short.rows
    (short.path / "pooled" / "foundation.safetensors").write_bytes(b"nothing")
    with pytest.raises(ArtifactError, match=r"(?s)foundation\.safetensors.*adapt again"):
        _ = load_run(short.path, foundation=made.foundation, dataset=made.dataset).scores
    with pytest.raises(ConfigError, match="nothing was trained"):
        Pooled(PooledSettings()).scores(None, made.dataset, rows)
