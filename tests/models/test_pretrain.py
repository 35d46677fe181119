"""Pre-training reads open users only, keeps the best epoch and repeats itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss as sklearn_log_loss
from sklearn.metrics import roc_auc_score
from torch import Tensor

from fedpa.artifacts import sha256
from fedpa.data.dataset import OPEN, Dataset, Part
from fedpa.errors import ArtifactError, ConfigError, DataError
from fedpa.models.foundation import Foundation, load_foundation
from fedpa.models.mlp import MLP
from fedpa.models.pretrain import _balance, pretrain
from prepared import Small, small

PLAIN: dict[str, Any] = {"reader": "none", "item_embedding": False, "embedding": 8, "weight_decay": 0.0}
QUICK: dict[str, Any] = {"epochs": 3, "lr": 0.01, "batch_size": 256, **PLAIN}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return small(tmp_path_factory)


def weights(foundation: Foundation) -> dict[str, Tensor]:
    return foundation.model.state_dict()


def scores(foundation: Foundation, data: Dataset, part: str) -> tuple[Any, Any]:
    rows = data.rows(part)
    codes = (data.user_codes[data.user[rows]], data.item_codes[data.item[rows]], data.context_codes[rows])
    with torch.inference_mode():
        logits = foundation.model(*(torch.from_numpy(np.ascontiguousarray(c)).long() for c in codes))
    return data.label[rows], logits.sigmoid().double().numpy()


def test_held_out_values_are_those_of_the_kept_weights(made: Small) -> None:
    facts = made.foundation.facts
    y, p = scores(made.foundation, made.dataset, "foundation_val")
    assert facts["held_out"]["logloss"] == pytest.approx(sklearn_log_loss(y, p), abs=1e-5)
    assert facts["held_out"]["auc"] == pytest.approx(roc_auc_score(y, p), abs=1e-6)
    assert facts["held_out"]["rows"] == len(y)
    assert facts["rows"] == len(made.dataset.rows("foundation"))
    assert 1 <= facts["best_epoch"] <= facts["epochs"]
    assert facts["dataset"]["hash"] == made.dataset.hash


def test_it_learns(made: Small) -> None:
    trained = pretrain(made.dataset, **(QUICK | {"epochs": 8, "patience": 8}))
    y, p = scores(trained, made.dataset, "foundation")
    assert roc_auc_score(y, p) > 0.6
    assert sklearn_log_loss(y, p) < sklearn_log_loss(y, np.full(len(y), y.mean()))


def test_the_best_epoch_is_kept(made: Small) -> None:
    """A rate that overfits: more epochs do not change what was best before."""
    values: dict[str, Any] = {"lr": 0.05, "batch_size": 64, "patience": 4}
    long = pretrain(made.dataset, epochs=12, **values)
    best = long.facts["best_epoch"]
    assert best < long.facts["epochs"] == min(12, best + 4)
    short = pretrain(made.dataset, epochs=best, **values)
    assert long.hash == short.hash


def test_equal_seeds_give_equal_weights(made: Small) -> None:
    torch.manual_seed(99)
    same = pretrain(made.dataset, **(QUICK | {"epochs": 4}))
    assert same.hash == made.foundation.hash
    other = pretrain(made.dataset, seed=1, **QUICK)
    assert other.hash != made.foundation.hash


def test_private_rows_are_not_read(made: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    """Turning every label of a user who is not open changes nothing."""
    expected = pretrain(made.dataset, **QUICK).hash
    data = Dataset(made.dataset.path)
    opened = data.side[data.user] == OPEN
    turned = np.where(opened, data.label, 1 - data.label)
    codes = data.context_codes.copy()
    codes[~opened] = 0
    monkeypatch.setattr(Dataset, "label", turned)
    monkeypatch.setitem(data.__dict__, "context_codes", codes)
    assert pretrain(data, **QUICK).hash == expected


def test_codes_of_nobody_stay_unknown(made: Small) -> None:
    """Code 0 starts at zero and, unless an open row has it, stays there."""
    data = made.dataset
    rows = data.rows("foundation")
    for place, feature in enumerate(data.user_features):
        table = made.foundation.model.named_table("user", feature.name)
        met = np.unique(data.user_codes[data.user[rows], place])
        assert (0 in met) == bool(table[0].any()), feature.name


def test_without_open_rows_there_is_nothing_to_train_on(made: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    data = Dataset(made.dataset.path)
    for part in (Part.FOUNDATION, Part.FOUNDATION_VAL):
        monkeypatch.setitem(data.__dict__, "part", np.where(data.part == part, Part.UNUSED, data.part))
        with pytest.raises(DataError, match=f"no row in part '{part.name.lower()}'"):
            pretrain(data, **QUICK)
        monkeypatch.undo()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epoch": 3}, "unknown setting 'epoch'; did you mean 'epochs'"),
        ({"hidden": ()}, "setting 'hidden'"),
        ({"lr": 0}, "setting 'lr'"),
    ],
)
def test_mistakes_are_named(made: Small, tmp_path: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        pretrain(made.dataset, out=tmp_path / "out", **values)
    assert list(tmp_path.iterdir()) == []


def test_other_widths(made: Small) -> None:
    model = pretrain(made.dataset, **(QUICK | {"epochs": 1, "embedding": 3, "hidden": (5,)})).model
    assert [tuple(layer.get_parameter("weight").shape) for layer in model.layers] == [
        (5, model.width("user") + model.width("item") + model.width("context"))
    ]
    assert model.embedding == 3


def test_a_saved_foundation_is_the_same(made: Small, tmp_path: Path) -> None:
    loaded = load_foundation(made.foundation_path)
    assert loaded.hash == made.foundation.hash
    assert loaded.facts == made.foundation.facts
    for name, value in weights(made.foundation).items():
        assert torch.equal(weights(loaded)[name], value)
    assert not any(p.requires_grad for p in loaded.model.parameters())
    loaded.save(tmp_path / "again")
    for name in ("manifest.json", "foundation.safetensors"):
        assert sha256(tmp_path / "again" / name) == sha256(made.foundation_path / name)
    with pytest.raises(ArtifactError, match="already exists"):
        loaded.save(tmp_path / "again")


@pytest.mark.parametrize("damage", ["missing", "short", "changed"])
def test_a_damaged_foundation_is_refused(made: Small, tmp_path: Path, damage: str) -> None:
    made.foundation.save(tmp_path / "f")
    file = tmp_path / "f" / "foundation.safetensors"
    content = bytearray(file.read_bytes())
    if damage == "missing":
        file.unlink()
    elif damage == "short":
        file.write_bytes(content[:-10])
    else:
        content[-1] ^= 1
        file.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"foundation\.safetensors"):
        load_foundation(tmp_path / "f")


def test_the_hash_covers_weights_and_encoders(made: Small) -> None:
    model = MLP.from_spec(made.foundation.model.spec())
    model.load_state_dict(weights(made.foundation))
    assert Foundation.of(model, made.foundation.features, {}).hash == made.foundation.hash
    other = {**made.foundation.features, "context": []}
    assert Foundation.of(model, other, {}).hash != made.foundation.hash
    with torch.no_grad():
        model.head.bias.add_(1e-6)
    assert Foundation.of(model, made.foundation.features, {}).hash != made.foundation.hash


def test_the_head_starts_with_both_signs() -> None:
    model = MLP({"user": [("a", 2)], "item": [("b", 2)], "context": []})
    model.head.weight.data.fill_(0.3)
    _balance(model)
    assert model.head.weight.detach().flatten().tolist() == pytest.approx([0.3, -0.3] * 4)
