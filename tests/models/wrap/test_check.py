"""What cannot work is named before anything runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fedpa
from arrays import CPU, ArrayDataset, toy
from fedpa.errors import ConfigError, FedpaError
from fedpa.models.wrap.rows import Rows, first_rows
from models.wrap.modules import DCN, made


def data() -> ArrayDataset:
    return toy(9, np.full(9, 8), context=True, features="causal")


class Base(nn.Module):
    """Four item and user numbers through two layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 1)

    def features(self, rows: Rows) -> Tensor:
        return torch.cat([rows.user_codes, rows.item_codes], -1).float()

    def middle(self, hidden: Tensor) -> Tensor:
        return torch.tanh(hidden)

    def forward(self, rows: Rows) -> Tensor:
        found: Tensor = self.second(self.middle(self.first(self.features(rows))))
        return found.squeeze(-1)


class BatchStatistics(Base):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(8, track_running_stats=False)

    def middle(self, hidden: Tensor) -> Tensor:
        return self.norm(hidden)  # type: ignore[no-any-return]


class Centred(Base):
    def middle(self, hidden: Tensor) -> Tensor:
        return hidden - hidden.mean(0)


class Counting(Base):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(1))

    def middle(self, hidden: Tensor) -> Tensor:
        self.get_buffer("seen").add_(1)
        return hidden


class Remembering(Base):
    last: Tensor | None = None

    def middle(self, hidden: Tensor) -> Tensor:
        found = hidden if self.last is None else hidden + 0 * self.last
        self.last = hidden.detach()
        return found


class Drawing(Base):
    def middle(self, hidden: Tensor) -> Tensor:
        return nn.functional.dropout(hidden, 0.5, training=True)


class Unused(Base):
    def forward(self, rows: Rows) -> Tensor:
        return nn.functional.linear(self.first(self.features(rows)), self.second.weight).squeeze(-1)


class Detached(Base):
    def middle(self, hidden: Tensor) -> Tensor:
        return hidden.detach()


class NoGradient(Base):
    def features(self, rows: Rows) -> Tensor:
        return super().features(rows)

    def forward(self, rows: Rows) -> Tensor:
        with torch.no_grad():
            hidden = self.first(self.features(rows))
        found: Tensor = self.second(hidden)
        return found.squeeze(-1)


class SequenceFirst(Base):
    """A sequence of two before the rows: the first layer sees [2, rows, 4]."""

    def forward(self, rows: Rows) -> Tensor:
        x = self.features(rows)
        found: Tensor = self.second(torch.tanh(self.first(torch.stack([x, x + 1]))).mean(0))
        return found.squeeze(-1)


class Interleaved(Base):
    """Two positions of all rows, position after position: a first dimension of rows times two in the wrong order."""

    def forward(self, rows: Rows) -> Tensor:
        x = self.features(rows)
        hidden = torch.tanh(self.first(torch.cat([x, x + 1])))
        found: Tensor = self.second(hidden.view(2, len(x), -1).mean(0))
        return found.squeeze(-1)


class Attention(Base):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def middle(self, hidden: Tensor) -> Tensor:
        two = torch.stack([hidden, hidden + 1], 1)
        found: Tensor = self.attention(two, two, two, need_weights=False)[0]
        return found.mean(1)


class Twice(Base):
    def forward(self, rows: Rows) -> Tensor:
        return super().forward(rows)[:, None].expand(-1, 2)


class Failing(Base):
    def middle(self, hidden: Tensor) -> Tensor:
        raise RuntimeError("no such thing")


def _scaled(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits - labels).square() / logits.square().mean()


BOTH = ["first", "second"]
PROBLEMS: dict[str, tuple[Callable[[], nn.Module], list[str], dict[str, Any], str]] = {
    "batch statistics": (BatchStatistics, BOTH, {}, r"rows depend on each other: 'norm' \(BatchNorm1d\)[\s\S]*loop"),
    "rows that meet": (Centred, BOTH, {}, r"rows depend on each other[\s\S]*loop"),
    "a buffer that counts": (Counting, BOTH, {}, "in-place state: a forward pass changes 'seen'"),
    "a tensor that is remembered": (Remembering, BOTH, {}, "in-place state: a forward pass changes 'last'"),
    "random numbers": (Drawing, BOTH, {}, "two equal forward passes differ: it draws random numbers"),
    "never called": (Unused, BOTH, {}, "'second' is never called"),
    "bypassed": (Attention, ["out_proj"], {}, r"'attention\.out_proj': nn\.MultiheadAttention reads its weight"),
    "detached": (Detached, BOTH, {}, "'first': no gradient of the logits reaches its adapters"),
    "without gradient": (NoGradient, ["first"], {}, "'first': no gradient of the logits reaches its adapters"),
    "rows second": (SequenceFirst, BOTH, {}, r"'first': its input \[2, 12, 4\] does not begin with the 12 rows"),
    "rows in another order": (Interleaved, BOTH, {}, "a user's logits differ from those of that user alone"),
    "logits of two labels": (Twice, BOTH, {}, r"logits \[12, 2\] for 12 rows, expected \[12\][\s\S]*labels="),
    "a failure": (Failing, BOTH, {}, r"its forward failed on 12 rows \(RuntimeError: no such thing\)"),
    "a loss per batch": (
        Base,
        BOTH,
        {"loss": lambda logits, labels: (logits - labels).square().mean()},
        r"its loss returns \[\], expected one per row \[12\]",
    ),
    "a loss over rows": (Base, BOTH, {"loss": _scaled}, "its loss of a row depends on the other rows"),
    "an infinite loss": (Base, BOTH, {"loss": lambda logits, labels: logits / 0}, "its loss is not finite"),
}


@pytest.mark.parametrize("case", PROBLEMS)
def test_a_problem_is_named(case: str) -> None:
    module, targets, settings, message = PROBLEMS[case]
    found = fedpa.wrap(module(), targets, **settings)
    with pytest.raises(ConfigError, match=message):
        found.check(data())
    with pytest.raises(ConfigError, match=message):
        fedpa.adapt(found, data(), item_bias=False)


@pytest.mark.parametrize("module", [BatchStatistics, Centred, SequenceFirst, Interleaved])
def test_the_plain_loop_takes_modules_whose_rows_meet(module: Callable[[], nn.Module]) -> None:
    fedpa.wrap(module(), BOTH, engine="loop").check(data())


@pytest.mark.parametrize("module", [Counting, Remembering, Drawing, Unused, Detached])
def test_the_plain_loop_mends_nothing_else(module: Callable[[], nn.Module]) -> None:
    with pytest.raises(ConfigError):
        fedpa.wrap(module(), BOTH, engine="loop").check(data())


def test_a_module_in_training_mode_is_named() -> None:
    module = BatchStatistics()
    module.drop = nn.Dropout()
    found = fedpa.wrap(module, BOTH)
    assert not module.training
    module.train()
    with pytest.raises(ConfigError, match=r"'norm' \(BatchNorm1d\) is in training mode: call eval\(\); 'drop' \(Drop"):
        found.check(data())


def test_batch_norm_with_running_statistics_works() -> None:
    module = Base()
    module.middle = nn.BatchNorm1d(8)  # type: ignore[method-assign]
    fedpa.wrap(module, BOTH).check(data())


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("encoder", [False, True])
def test_the_fast_path_of_transformer_layers_does_not_bypass_targets(padded: bool, encoder: bool) -> None:
    class Encoder(Base):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.layer = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False) if encoder else layer

        def middle(self, hidden: Tensor) -> Tensor:
            mask = torch.tensor([[False, False, True]]).expand(len(hidden), -1) if padded else None
            three = torch.stack([hidden, hidden + 1, hidden + 2], 1)
            found: Tensor = self.layer(three, src_key_padding_mask=mask)
            return found.mean(1)

    found = fedpa.wrap(Encoder(), ["linear1", "linear2"])
    found.check(data())


def test_a_layer_that_stops_running_is_an_error() -> None:
    class Sometimes(Base):
        skip = False

        def middle(self, hidden: Tensor) -> Tensor:
            return hidden if self.skip else self.get_submodule("extra")(hidden)

    module = Sometimes()
    module.extra = nn.Linear(8, 8)
    found, on = fedpa.wrap(module, [*BOTH, "extra"]), data()
    found.check(on)
    module.skip = True
    from models.wrap.test_adapted import inner, method, some_rows, started

    chosen = method(found)
    model = inner(chosen, found, on)
    with pytest.raises(FedpaError, match="layer 'extra': did not run in this forward pass"):
        model.forward(started(model, 5, torch.float32), some_rows(on))


def test_labels_must_be_the_data_sets() -> None:
    on = data()
    module = made(DCN, on, labels=2)
    with pytest.raises(ConfigError, match="has no label 'share', its labels are label, other"):
        fedpa.wrap(module, ["cross.*"], labels=("label", "share")).check(on)
    with pytest.raises(ConfigError, match="is scored by label 'label', but the first label of the module is 'other'"):
        fedpa.wrap(module, ["cross.*"], labels=("other", "label")).check(on)


def test_a_check_takes_rows_of_ones_own_and_leaves_the_module_as_it_was() -> None:
    on = data()
    module = made(DCN, on)
    found = fedpa.wrap(module, ["cross.*"])
    rows = first_rows(on, CPU)
    before = module(rows)
    found.check(rows.take(slice(0, 7)))
    assert torch.equal(module(rows), before)
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in module.modules())
    assert not any("forward" in vars(layer) for layer in module.modules())
    with pytest.raises(ConfigError, match="needs 6 rows at least, found 5"):
        found.check(rows.take(slice(0, 5)))
