"""The personal bias is one more personal parameter of any model, and one more term of its logit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from arrays import toy, toy_engine
from fedpa.data.dataset import Part
from fedpa.errors import ConfigError
from fedpa.federation.parameters import FROZEN, PERSONAL, SHARED, Block, Layout, Parameter
from fedpa.federation.rows import Batch
from fedpa.methods.on_device import UserBias
from fedpa.models.bias import WithPersonalBias


class Constant:
    """A model of one weight, which is every logit."""

    def __init__(self, name: str = "w") -> None:
        self.layout = Layout([Block(name, (Parameter(name, (1,), torch.tensor([2.0])),))], lambda _: SHARED, {})

    def forward(self, blocks: Mapping[str, Tensor], batch: Batch) -> tuple[Tensor, list[Tensor]]:
        return blocks["w"].expand(batch.items.shape), [torch.ones(1)]


def test_a_term_of_each_user_is_added() -> None:
    model = WithPersonalBias(Constant())
    assert model.layout.scopes == {"w": SHARED, "user_bias": PERSONAL}
    assert [block.name for block in model.layout.blocks] == ["w", "user_bias"]
    flat = torch.tensor([[2.0, 0.5], [2.0, -1.0]])
    batch = Batch(torch.arange(2), torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 3, 0, dtype=torch.int64))
    logits, gates = model.forward(model.layout.views(flat), batch)
    assert logits.tolist() == [[2.5] * 3, [1.0] * 3]
    assert gates[0].tolist() == [1.0]


def test_it_starts_at_zero_after_the_other_parameters() -> None:
    inner = Constant()
    layout = WithPersonalBias(inner).layout
    (parameter,) = layout.blocks[-1].parameters
    assert isinstance(parameter.start, Tensor)
    assert parameter.start.tolist() == [0.0]
    assert layout.personal_size == 1
    assert layout.places["user_bias"].begin == inner.layout.size == 1
    assert "user_bias" not in inner.layout.scopes


def test_a_model_that_has_one_already_is_refused() -> None:
    with pytest.raises(ConfigError, match="'user_bias' is named twice"):
        WithPersonalBias(Constant("user_bias"))


@pytest.mark.parametrize(("chosen", "decay"), [({}, 10.0), ({"personal_decay": 0.0}, 0.0)])
def test_alone_it_takes_the_gradient_of_the_click_loss(tmp_path: Path, chosen: dict[str, float], decay: float) -> None:
    """Every step adds lr times the mean of label minus probability, then shrinks by the preset's prior."""
    data = toy(9, np.random.default_rng(0).integers(2, 12, 9))
    values = {"optimizer": "sgd", "lr": 0.8, "epochs": 3, "dtype": "float64"}
    method = UserBias.configured("default", values | chosen)
    assert isinstance(method, UserBias)
    engine = toy_engine(tmp_path, data, method)
    assert engine.model.layout.uploaded == ()
    kinds = {name: scope for name, scope in engine.model.layout.scopes.items() if name != "user_bias"}
    assert kinds == {"head.weight": FROZEN, "head.bias": FROZEN}
    rows = engine.shards[0].rows
    score = engine.shards[0].scores(engine.server.state)
    start = np.log(score / (1 - score))
    bias = np.zeros(9)
    for number in (1, 2):
        upload = engine.round(number)
        assert (upload.sums, upload.weights_up) == ([], 0)
        for _ in range(3):
            residual = rows.labels.numpy() - 1 / (1 + np.exp(-start - bias[rows.user]))
            train = rows.part == Part.TRAIN
            bias += 0.8 * np.bincount(rows.user[train], residual[train], minlength=9) / rows.train
            bias /= 1 + 0.8 * decay / rows.train
        np.testing.assert_allclose(engine.personal()[:, 0], bias, rtol=0, atol=1e-12)
    expected = 1 / (1 + np.exp(-start - bias[rows.user]))
    np.testing.assert_allclose(engine.shards[0].scores(engine.server.state), expected, rtol=0, atol=1e-12)
