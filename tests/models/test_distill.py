"""Distillation learns from clicks and from a teacher that it leaves alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from command import answer, fedpa
from fedpa.data.dataset import OPEN, Part
from fedpa.errors import ArtifactError, ConfigError
from fedpa.models.distill import distill, soft_loss, unlabelled_pairs
from fedpa.models.foundation import Foundation, load_foundation
from fedpa.models.history import TransformerHistory
from fedpa.models.inputs import open_examples
from fedpa.models.pretrain import pretrain
from prepared import Small, small

QUICK: dict[str, Any] = {
    "reader": "none",
    "item_embedding": False,
    "embedding": 4,
    "hidden": (8, 4),
    "epochs": 3,
    "lr": 0.01,
    "batch_size": 256,
}
ENCODER: dict[str, Any] = {"reader": "transformer", "taste_width": 0, "encoder_width": 8, "encoder_folds": 1}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return small(tmp_path_factory)


def held_out(foundation: Foundation, made: Small) -> Tensor:
    rows = foundation.inputs.open_rows(made.dataset, Part.FOUNDATION_VAL, torch.device("cpu"))
    with torch.inference_mode():
        logits: Tensor = foundation.model(*rows[:4])
    return logits


# Loss


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_the_loss_by_hand() -> None:
    """Two rows, of which the second has no click: T = 2, w = 0.3."""
    logits = torch.tensor([0.5, -1.0], dtype=torch.float64)
    targets = torch.tensor([[1.0, 2.0], [math.nan, -3.0]], dtype=torch.float64)
    hard = -math.log(sigmoid(0.5))
    soft = 0.0
    for z, t in ((0.5, 2.0), (-1.0, -3.0)):
        p, q = sigmoid(t / 2), sigmoid(z / 2)
        soft -= (p * math.log(q) + (1 - p) * math.log(1 - q)) / 2
    assert float(soft_loss(2.0, 0.3)(logits, targets)) == pytest.approx(0.7 * hard + 0.3 * 4 * soft)


def test_rows_without_clicks_alone() -> None:
    targets = torch.tensor([[math.nan, 0.0]])
    assert float(soft_loss(1.0, 0.5)(torch.zeros(1), targets)) == pytest.approx(0.5 * math.log(2))


def test_gradients_keep_their_size_whatever_the_temperature() -> None:
    """At high temperatures that of the soft part is T^2 (q - p) / T -> (z - t) / 4 (Hinton et al., eq. 4)."""
    logits = torch.tensor([0.5], dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([[math.nan, 2.0]], dtype=torch.float64)
    (slope,) = torch.autograd.grad(soft_loss(1000.0, 1.0)(logits, targets), logits)
    assert float(slope) == pytest.approx((0.5 - 2.0) / 4, rel=1e-5)


# Pairs


def test_pairs_join_a_moment_with_another_row(made: Small) -> None:
    """Each pair's user part is one row's and its item part another's, and every row gives a moment before any twice."""
    opened = open_examples(made.dataset, Part.FOUNDATION)
    rows = len(opened.queries)
    pairs = unlabelled_pairs(made.dataset, opened, rows, 0)
    assert torch.all(pairs.label.isnan())
    assert np.all(made.dataset.side[pairs.queries.user] == OPEN)
    own, drawn = opened.queries, pairs.queries

    def columns(queries: Any, *names: str) -> list[tuple[int, ...]]:
        return sorted(zip(*(np.asarray(getattr(queries, name)).reshape(rows).tolist() for name in names), strict=True))

    moment = ("user", "time", "views", "clicks")
    assert columns(drawn, *moment) == columns(own, *moment)
    shown = ("items", "item_views", "item_clicks", "all_views", "all_clicks")
    assert set(columns(drawn, *shown)) <= set(columns(own, *shown))
    assert not np.array_equal(drawn.items, own.items)
    item = made.dataset.encode_item(drawn.item_views[:, 0], drawn.item_clicks[:, 0], drawn.all_views, drawn.all_clicks)
    np.testing.assert_array_equal(pairs.context[:, : made.dataset.n_item_context], item)


# Students


def test_without_a_word_of_the_teacher_it_is_pretraining(made: Small) -> None:
    alone = pretrain(made.dataset, seed=3, **QUICK)
    student = distill(made.foundation, made.dataset, seed=3, mixing=0.0, **QUICK)
    assert student.hash == alone.hash
    assert student.facts["held_out"] == alone.facts["held_out"]


def test_the_teacher_is_left_alone_and_named(made: Small) -> None:
    before = {name: value.clone() for name, value in made.foundation.model.state_dict().items()}
    student = distill(made.foundation, made.dataset, pairs=0.5, **QUICK)
    assert all(torch.equal(value, before[name]) for name, value in made.foundation.model.state_dict().items())
    found = student.facts["distilled"]
    assert found["teacher"] == made.foundation.hash
    assert found["unlabelled"] == round(0.5 * len(made.dataset.rows("foundation")))
    assert found["weights"] == {"teacher": made.foundation.n_weights, "student": student.n_weights}
    assert found["weights"]["student"] < found["weights"]["teacher"]
    assert student.facts["settings"]["temperature"] == 2.0


def test_it_comes_to_say_what_the_teacher_says(made: Small) -> None:
    """The more the teacher counts, the nearer the student is to it on users that neither was trained on."""
    wanted = held_out(made.foundation, made)
    settings = QUICK | {"epochs": 12, "patience": 0, "pairs": 2.0}
    far = [
        float(
            (held_out(distill(made.foundation, made.dataset, mixing=mixing, **settings), made) - wanted).square().mean()
        )
        for mixing in (0.0, 1.0)
    ]
    assert far[1] < 0.9 * far[0]


@pytest.mark.parametrize("changed", [{"temperature": 5.0}, {"mixing": 0.9}, {"pairs": 0.0}])
def test_every_setting_counts(made: Small, changed: dict[str, Any]) -> None:
    settings = QUICK | {"epochs": 1}
    same = distill(made.foundation, made.dataset, **settings)
    assert distill(made.foundation, made.dataset, **settings).hash == same.hash
    assert distill(made.foundation, made.dataset, **(settings | changed)).hash != same.hash


def test_a_transformer_teaches_a_narrower_one(made: Small) -> None:
    settings = QUICK | ENCODER | {"epochs": 1}
    teacher = pretrain(made.dataset, **settings)
    smaller = settings | {"encoder_width": 4, "encoder_layers": 1, "encoder_items": False}
    student = distill(teacher, made.dataset, **smaller)
    reader = student.inputs.history
    assert isinstance(reader, TransformerHistory)
    assert reader.encoder.width == 4
    assert student.n_weights < teacher.n_weights
    alone = pretrain(made.dataset, **smaller).inputs.history
    assert isinstance(alone, TransformerHistory)
    assert not torch.equal(reader.encoder.start, alone.encoder.start)


def test_n_weights_counts_every_number(made: Small) -> None:
    foundation = pretrain(made.dataset, **(QUICK | ENCODER | {"epochs": 1}))
    reader = foundation.inputs.history
    assert isinstance(reader, TransformerHistory)
    parts = (foundation.model.parameters(), reader.encoder.parameters())
    assert foundation.n_weights == sum(value.numel() for part in parts for value in part)


def test_another_encoding_is_refused(made: Small, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = small(tmp_path_factory, "reference")
    with pytest.raises(ArtifactError, match="encoded otherwise"):
        distill(made.foundation, other.dataset, **QUICK)


def test_a_mixing_weight_above_one(made: Small) -> None:
    with pytest.raises(ConfigError, match="distilling: setting 'mixing'"):
        distill(made.foundation, made.dataset, mixing=1.5)


# Command line


def test_on_the_command_line(made: Small, tmp_path: Path) -> None:
    config = tmp_path / "student.yaml"
    config.write_text("reader: none\nembedding: 2\nhidden: [8, 4]\nepochs: 1\nmixing: 0.5\n")
    arguments = ("distill", made.foundation_path, made.dataset.path, "--to", config)
    found = answer(*arguments, "--set", "mixing=0.8", "--out", tmp_path / "student")
    assert found["distilled"]["teacher"] == made.foundation.hash
    assert found["settings"]["mixing"] == 0.8
    student = load_foundation(tmp_path / "student")
    assert student.hash == found["hash"]
    assert student.model.embedding == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("embeding: 2\n", "student.yaml: unknown setting 'embeding'; did you mean 'embedding'?"),
        ("- 1\n", "student.yaml: expected settings, found"),
        ("a: [\n", "student.yaml: cannot be read"),
    ],
)
def test_a_mistake_in_the_file_is_named(made: Small, tmp_path: Path, text: str, message: str) -> None:
    config = tmp_path / "student.yaml"
    config.write_text(text)
    out = tmp_path / "student"
    ended = fedpa("distill", made.foundation_path, made.dataset.path, "--to", config, "--out", out, code=2)
    assert message in ended.stderr
