"""Adapting: rounds, the best one, bytes, seeds and what is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
import yaml
from sklearn.metrics import log_loss as sklearn_log_loss
from sklearn.metrics import roc_auc_score

from fedpa.adaptation import adapt
from fedpa.artifacts import sha256
from fedpa.data.dataset import Part
from fedpa.errors import ArtifactError, ConfigError
from fedpa.federation.rows import group_values
from fedpa.federation.shard import Shard
from fedpa.run import Run, load_run
from prepared import ITEMS, QUICK, Small, quick_run, small


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return small(tmp_path_factory)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return quick_run(tmp_path_factory)


def go(made: Small, out: Path, **settings: Any) -> Run:
    return adapt(made.foundation, made.dataset, out=out, **(QUICK | settings))


def hand_counted(made: Small, rank: int = 4, hidden: tuple[int, int] = (8, 4)) -> dict[str, int]:
    """Weights of the default adapters from the widths of the published network, in one unit of each scope."""
    data = made.dataset
    into = 8 * (len(data.user_features) + len(data.item_features) + len(data.context_features))
    layers = [(into, 32, hidden[0]), (32, 8, hidden[1])]
    lora = sum(rank * (i + o) for i, o, _ in layers)
    branches = 2 + len(data.group_sizes)
    gates = sum(h * i + h + branches * h + branches for i, _, h in layers)
    wide = 8 * len(data.item_features)
    return {
        "group": lora + wide,
        "shared": gates + 8 + 1 + wide + ITEMS,
        "personal": lora + 8 * len(data.user_features) + wide + 1,
    }


def test_every_round_is_noted(run: Run, made: Small) -> None:
    assert [line["round"] for line in run.history] == [0, 1, 2, 3]
    fields = {"round", "participants", "train_loss", "seconds_train", "seconds_eval", "bytes_up", "bytes_down"}
    trained = len(np.unique(made.dataset.user[made.dataset.rows("train")]))
    for line in run.history:
        taken = {"nodes", "late", "refused"} if line["round"] else set()
        assert set(line) == fields | taken | {"train", "val", "test"}
        assert not taken or (line["nodes"], line["late"], line["refused"]) == (1, 0, {})
        assert line["participants"] == (trained if line["round"] else 0)
        assert line["seconds_train"] >= 0 < line["seconds_eval"]
        for split in ("train", "val", "test"):
            assert set(line[split]) == {"auc", "gauc", "logloss"}
    assert run.history[0]["train_loss"] is None
    losses = [line["train_loss"] for line in run.history[1:]]
    assert losses == sorted(losses, reverse=True)
    assert 0.3 < losses[0] < 1.0


def test_the_first_training_loss_is_the_foundations(run: Run, made: Small) -> None:
    """Mean over users of the mean log-loss of their training rows."""
    rows = run.rows
    baseline = run._baseline(rows)
    assert baseline is not None
    y, p = rows.labels.numpy().astype(float), baseline.astype(float)
    losses = -(y * np.log(p) + (1 - y) * np.log1p(-p))
    train = rows.part == Part.TRAIN
    of_user = np.bincount(rows.user[train], losses[train]) / np.bincount(rows.user[train])
    assert run.history[1]["train_loss"] == pytest.approx(of_user.mean(), abs=1e-5)


def test_bytes_are_the_parameters_that_move(run: Run, made: Small) -> None:
    counts = hand_counted(made)
    data = made.dataset
    users = np.unique(data.user[data.rows("train")])
    members = sum(int((values[users] >= 0).sum()) for values in group_values(data).values())
    assert members < len(users) * len(data.group_sizes), "some user should have an unknown value"
    down = 4 * (counts["shared"] * len(users) + counts["group"] * members)
    up = down + 4 * ITEMS * len(users)  # how many touched each item is summed beside the changes
    assert run.history[0]["bytes_up"] == run.history[0]["bytes_down"] == 0
    for line in run.history[1:]:
        assert (line["bytes_up"], line["bytes_down"]) == (up, down)
    assert run.summary["bytes_up_per_user_round"] == pytest.approx(up / len(users))
    assert run.summary["bytes_down_per_user_round"] == pytest.approx(down / len(users))
    groups = {f"group({key})": counts["group"] for key in data.group_sizes}
    frozen = sum(p.numel() for p in made.foundation.model.parameters())
    assert run.summary["parameters"] == groups | {
        "frozen": frozen,
        "shared": counts["shared"],
        "personal": counts["personal"],
    }


def test_what_a_method_freezes_is_counted_beside_the_foundation(made: Small, tmp_path: Path) -> None:
    """FFA-LoRA freezes A, [rank, inputs] of every layer, and shares B [rank, outputs] and the head."""
    found = go(made, tmp_path / "run", method="ffa-lora", rank=3, rounds=1)
    model = made.foundation.model
    shapes = [layer.get_parameter("weight").shape for layer in model.layers]
    assert found.summary["parameters"] == {
        "frozen": sum(p.numel() for p in model.parameters()) + 3 * sum(into for _, into in shapes),
        "shared": 3 * sum(out for out, _ in shapes) + model.head.weight.numel() + 1,
    }


def test_bytes_under_partial_participation(made: Small, tmp_path: Path) -> None:
    found = go(made, tmp_path / "run", participation=0.3, groups=[], dtype="float64", rounds=2)
    shared = found.summary["parameters"]["shared"]
    counts = [line["participants"] for line in found.history[1:]]
    assert len(set(counts)) == 2
    assert all(0 < count < found.summary["private_users"] for count in counts)
    assert [line["bytes_up"] for line in found.history[1:]] == [8 * (shared + ITEMS) * count for count in counts]
    assert [line["bytes_down"] for line in found.history[1:]] == [8 * shared * count for count in counts]
    assert found.summary["bytes_up_per_user_round"] == 8 * (shared + ITEMS)


def test_values_are_those_of_scikit_learn(run: Run) -> None:
    rows = run.rows
    for name, part in (("train", Part.TRAIN), ("val", Part.VAL), ("test", Part.TEST)):
        here = rows.part == part
        y, p = rows.labels.numpy()[here].astype(int), run.scores[here].astype(float)
        found = run.summary["splits"][name]
        assert found["auc"] == pytest.approx(roc_auc_score(y, p), abs=1e-4)  # from 10,000 bins of the score
        assert found["logloss"] == pytest.approx(sklearn_log_loss(y, p), abs=1e-6)
        weighted = [
            ((rows.user[here] == user).sum(), roc_auc_score(y[rows.user[here] == user], p[rows.user[here] == user]))
            for user in np.unique(rows.user[here])
            if 0 < y[rows.user[here] == user].mean() < 1
        ]
        size, value = np.array(weighted).T
        assert found["gauc"] == pytest.approx((size * value).sum() / size.sum(), abs=1e-9)


def test_the_summary(run: Run, made: Small) -> None:
    summary = run.summary
    assert summary.keys() >= {
        "best_round",
        "rounds",
        "splits",
        "seconds_per_round",
        "bytes_up_per_user_round",
        "bytes_down_per_user_round",
        "parameters",
        "private_users",
        "interrupted",
        "dataset",
        "method",
        "preset",
        "seed",
    }
    assert (summary["rounds"], summary["interrupted"], summary["method"]) == (3, False, "fedpa")
    assert summary["private_users"] == int((made.dataset.side == 1).sum())
    assert summary["splits"] == {name: run.history[summary["best_round"]][name] for name in ("train", "val", "test")}
    config = yaml.safe_load((run.path / "config.yaml").read_text())
    assert config["dataset"]["hash"] == made.dataset.hash
    assert config["foundation"] == {"path": str(made.foundation_path.resolve()), "hash": made.foundation.hash}
    assert config["settings"]["lr"] == QUICK["lr"]
    assert sorted(path.name for path in run.path.iterdir()) == [
        "checkpoints",
        "config.yaml",
        "metrics.jsonl",
        "personal.safetensors",
        "shared.safetensors",
        "summary.json",
    ]


@pytest.mark.parametrize("select", ["logloss", "auc", "gauc"])
def test_the_best_round_is_returned(made: Small, tmp_path: Path, select: str) -> None:
    """Scores of the run are those of its best round, personal parameters included."""
    found = go(made, tmp_path / "run", select=select, rounds=6, lr=0.15)
    sign = -1 if select == "logloss" else 1
    values = [sign * line["val"][select] for line in found.history]
    assert found.summary["best_round"] == int(np.argmax(values))
    assert found.summary["rounds"] == 6
    rows = found.rows
    here = rows.part == Part.VAL
    y, p = rows.labels.numpy()[here], found.scores[here]
    best = found.history[found.summary["best_round"]]
    assert roc_auc_score(y, p) == pytest.approx(best["val"]["auc"], abs=1e-4)  # from 10,000 bins of the score
    assert sklearn_log_loss(y, p.astype(float)) == pytest.approx(best["val"]["logloss"], abs=1e-6)


SELECTED = "fedpa.federation.coordinator.Coordinator._selected"


def feed(values: list[float]) -> Callable[..., float]:
    """The validation value that the test wants, round by round."""
    wanted = iter(values)
    return lambda *_: next(wanted)


def test_a_best_round_in_the_middle(made: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the second of five rounds had been the best: the same bytes as two rounds give."""
    monkeypatch.setattr(SELECTED, feed([0.5, 0.6, 0.9, 0.7, 0.8, 0.85]))
    found = go(made, tmp_path / "five", select="auc", rounds=5)
    assert found.summary["best_round"] == 2
    monkeypatch.setattr(SELECTED, feed([0.5, 0.6, 0.9]))
    two = go(made, tmp_path / "two", select="auc", rounds=2)
    assert two.summary["best_round"] == 2
    for name in ("shared.safetensors", "personal.safetensors"):
        assert (found.path / name).read_bytes() == (two.path / name).read_bytes()


def test_early_stopping(made: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SELECTED, feed([0.5, 0.6, 0.6, 0.55, 0.9, 0.9]))
    found = go(made, tmp_path / "stops", select="auc", rounds=5, patience=2)
    assert (found.summary["rounds"], found.summary["best_round"]) == (3, 1)
    monkeypatch.setattr(SELECTED, feed([0.5, 0.6, 0.6, 0.55, 0.9, 0.9]))
    found = go(made, tmp_path / "goes on", select="auc", rounds=5, patience=3)
    assert (found.summary["rounds"], found.summary["best_round"]) == (5, 4)
    monkeypatch.setattr(SELECTED, feed([0.9] + [0.5] * 9))
    found = go(made, tmp_path / "never", select="auc", rounds=4, patience=0)
    assert (found.summary["rounds"], found.summary["best_round"]) == (4, 0)


def test_no_round_is_the_foundation(made: Small, tmp_path: Path) -> None:
    found = go(made, tmp_path / "run", rounds=0)
    assert found.summary["best_round"] == 0
    baseline = found._baseline(found.rows)
    assert baseline is not None
    np.testing.assert_allclose(found.scores, baseline, rtol=0, atol=1e-6)
    assert not safetensors.numpy.load_file(found.path / "personal.safetensors")["personal"].any()


def test_equal_seeds_give_equal_bytes(run: Run, made: Small, tmp_path: Path) -> None:
    torch.manual_seed(123)
    same, other = go(made, tmp_path / "same"), go(made, tmp_path / "other", seed=1)
    for name in ("shared.safetensors", "personal.safetensors"):
        assert sha256(same.path / name) == sha256(run.path / name)
        assert sha256(other.path / name) != sha256(run.path / name)
    timeless = [
        [{key: value for key, value in line.items() if "seconds" not in key} for line in one.history]
        for one in (run, same)
    ]
    assert timeless[0] == timeless[1]


def test_ctrl_c_keeps_the_best_round(made: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Shard.round

    def interrupted(self: Shard, state: Any, number: int, downlink: Any) -> Any:
        if number == 3:
            raise KeyboardInterrupt
        return original(self, state, number, downlink)

    monkeypatch.setattr(Shard, "round", interrupted)
    found = go(made, tmp_path / "run", rounds=9)
    assert found.summary["interrupted"] is True
    assert found.summary["rounds"] == 2
    assert found.summary["best_round"] <= 2
    assert np.isfinite(load_run(found.path, foundation=made.foundation).scores).all()


def test_a_failure_leaves_nothing(made: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> Any:
        raise RuntimeError("in the middle")

    monkeypatch.setattr(Shard, "round", fails)
    with pytest.raises(RuntimeError, match="in the middle"):
        go(made, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_without_a_folder_the_run_is_in_memory_or_temporary(made: Small) -> None:
    found = adapt(made.foundation, made.dataset, **(QUICK | {"rounds": 1}))
    assert found.temporary is not None
    assert found.path.is_dir()
    assert len(found.recommend(int(made.dataset.user_ids[0]), 3).items) == 3  # type: ignore[union-attr]
    found.temporary.cleanup()
    assert not found.path.exists()


def test_baselines_run_too(made: Small, tmp_path: Path) -> None:
    two = adapt(None, made.dataset, out=tmp_path / "two", method="two-counters")
    frozen = adapt(made.foundation, made.dataset, out=tmp_path / "frozen", method="foundation")
    for found in (two, frozen):
        assert found.summary["rounds"] == 0
        assert found.summary["bytes_up_per_user_round"] == 0
        assert [line["round"] for line in found.history] == [0]
        binned = found.summary["splits"]["test"]["auc"]  # from 10,000 bins of the score
        assert found.evaluate("test")["auc"] == pytest.approx(binned, abs=1e-4)
        assert load_run(found.path, foundation=made.foundation).evaluate("val")["rows"] > 0
    assert frozen.summary["splits"]["test"]["auc"] == pytest.approx(
        roc_auc_score(*_labels_and_scores(frozen)), abs=1e-4
    )


def _labels_and_scores(found: Run) -> tuple[Any, Any]:
    here = found.rows.part == Part.TEST
    baseline = found._baseline(found.rows)
    assert baseline is not None
    return found.rows.labels.numpy()[here], baseline[here]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "fedpaa"}, "did you mean 'fedpa'"),
        ({"preset": "best"}, "unknown preset 'best'"),
        ({"rnak": 3}, "unknown setting 'rnak'; did you mean 'rank'"),
        ({"device": "abacus"}, "device 'abacus' cannot be used here"),
        ({"keep_rounds": 1}, "keep_rounds: expected 2 or more, found 1"),
        ({"driver": "rey"}, "driver .rey.: expected one of local, ray"),
        ({"shards": 0}, "shards: expected 1 to"),
        ({"deadline": 3.0, "threads": 2}, "deadline, threads: for shards on Ray alone"),
        ({"lr": float("nan")}, "setting 'lr'"),
    ],
)
def test_mistakes_are_found_before_anything_is_written(
    made: Small, tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        adapt(made.foundation, made.dataset, out=tmp_path / "run", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_foundation_is_needed_and_must_fit(
    made: Small, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with pytest.raises(ConfigError, match="needs a foundation"):
        adapt(None, made.dataset, out=tmp_path / "run")
    other = small(tmp_path_factory, "reference")
    with pytest.raises(ArtifactError, match="encoded otherwise than the foundation's"):
        adapt(other.foundation, made.dataset, out=tmp_path / "run")


def test_an_existing_run_is_kept(made: Small, tmp_path: Path) -> None:
    found = go(made, tmp_path / "run", rounds=1)
    before = sha256(found.path / "shared.safetensors")
    with pytest.raises(ArtifactError, match="already exists"):
        go(made, tmp_path / "run", rounds=1, seed=5)
    assert sha256(found.path / "shared.safetensors") == before
    go(made, tmp_path / "run", rounds=1, seed=5, overwrite=True)
    assert sha256(found.path / "shared.safetensors") != before


def test_the_files_carry_their_foundation(run: Run, made: Small) -> None:
    with safetensors.safe_open(run.path / "shared.safetensors", "pt") as file:
        assert file.metadata()["foundation"] == made.foundation.hash
        names = set(file.keys())
    assert not any(".user." in name or name.startswith("user_") for name in names)
    with safetensors.safe_open(run.path / "personal.safetensors", "np") as file:
        assert set(file.keys()) == {"personal"}
        assert "user_embedding" in file.metadata()
        assert file.get_slice("personal").get_shape() == [
            run.summary["private_users"],
            run.summary["parameters"]["personal"],
        ]


def test_every_line_is_json_without_nan(run: Run) -> None:
    for line in (run.path / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)
