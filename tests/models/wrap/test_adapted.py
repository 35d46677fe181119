"""A wrapped module starts as itself, and its adapters' gradients are those of a plain loop over users."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fedpa
from arrays import CPU, ArrayDataset, toy, toy_engine
from fedpa.errors import ConfigError
from fedpa.federation.rows import Batch, ShardRows
from fedpa.methods.fedpa import FedPA
from fedpa.methods.method import FederatedMethod, find_method
from fedpa.models.adapted import AdapterSettings
from fedpa.models.wrap.model import WrappedModel
from fedpa.models.wrap.rows import RowSource
from fedpa.models.wrap.wrapped import Wrapped
from models.wrap.modules import DCN, TextRanker, made
from models.wrap.oracle import of_user

ATTENTION = r"text\.encoder\.layer\.[12]\.attention\.self\.(query|value)"
CASES: dict[str, tuple[type[nn.Module], Any, dict[str, Any]]] = {
    "transformer": (TextRanker, ATTENTION, {"train": ["head"]}),
    "transformer, all linear": (TextRanker, "all-linear", {}),
    "transformer and head": (TextRanker, ["layer.2.*.query", "score"], {"train": ["head"]}),
    "dcn": (DCN, ["cross.*", "deep.*"], {"train": ["head"]}),
    "dcn, linear layers without their activations": (DCN, ["cross.0", "deep.0.0", "deep.1.0"], {}),
    "two labels": (DCN, ["cross.*"], {"labels": ("label", "other"), "train": ["head"]}),
}


def data() -> ArrayDataset:
    return toy(9, np.full(9, 8), context=True, features="causal")


def wrapped(case: str, found: ArrayDataset, dtype: torch.dtype, **values: Any) -> Wrapped:
    module, targets, settings = CASES[case]
    labels = {"labels": 2} if "labels" in settings else {}
    return fedpa.wrap(made(module, found, **labels).to(dtype), targets, **settings, **values)


def method(found: Wrapped, name: str = "fedpa", **values: Any) -> FederatedMethod:
    dtype = "float64" if found.dtype == torch.float64 else "float32"
    chosen = find_method(name).configured("default", {"dtype": dtype, "item_bias": False, **values}, found)
    return cast(FederatedMethod, chosen)


def some_rows(found: ArrayDataset, users: int = 5, rows: int = 4) -> Batch:
    rng = np.random.default_rng(3)
    return Batch(
        torch.arange(users),
        torch.from_numpy(rng.integers(0, found.n_items, (users, rows))),
        torch.from_numpy(rng.integers(0, 5, (users, rows, 1))),
    )


def started(model: WrappedModel, users: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Every user's parameters at the start."""
    starts = {p.name: cast(Tensor, p.start) for p in model.layout.parameters()}
    return {
        block.name: torch.cat([starts[p.name] for p in block.parameters]).to(dtype).expand(users, *block.shape).clone()
        for block in model.layout.blocks
    }


def inner(chosen: FederatedMethod, found: Wrapped, on: ArrayDataset) -> WrappedModel:
    return cast(WrappedModel, chosen.build_wrapped(found, on, 0, CPU))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("engine", ["flat", "loop"])
def test_it_starts_as_the_module(case: str, engine: str) -> None:
    on = data()
    found = wrapped(case, on, torch.float32, engine=engine)
    model = inner(method(found), found, on)
    batch = some_rows(on)
    with torch.inference_mode():
        logits, gates = model.forward(started(model, 5, torch.float32), batch)
    with torch.no_grad():
        expected = found.model(RowSource(on, CPU).of_batch(batch))
    assert logits.shape[:2] == (5, 4)
    torch.testing.assert_close(logits.flatten(), expected.flatten(), rtol=0, atol=1e-6)
    assert len(gates) == len(found.targets)
    for gate in gates:
        torch.testing.assert_close(gate, torch.ones(5, 4, 4), rtol=0, atol=1e-6)


@pytest.mark.parametrize("gate", [True, False])
@pytest.mark.parametrize("engine", ["flat", "loop"])
@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_a_plain_loop(case: str, engine: str, gate: bool) -> None:
    on = data()
    found = wrapped(case, on, torch.float64, engine=engine)
    chosen = method(found, gate=gate)
    model, settings = inner(chosen, found, on), cast(AdapterSettings, chosen.settings)
    draw = torch.Generator().manual_seed(5)
    blocks = {
        name: (start + 0.3 * torch.randn(start.shape, generator=draw, dtype=start.dtype)).requires_grad_()
        for name, start in started(model, 5, torch.float64).items()
    }
    batch = some_rows(on)
    logits = model.forward(blocks, batch)[0]
    push = torch.randn(logits.shape, generator=draw, dtype=logits.dtype)
    gradients = torch.autograd.grad((logits * push).sum(), [*blocks.values()])

    rows = RowSource(on, CPU).of_batch(batch)
    for user in range(5):
        mine = {name: block[user].detach().clone().requires_grad_() for name, block in blocks.items()}
        alone = of_user(found.model, found.targets, found.forward.trained, mine, settings)
        expected = alone(rows.take(slice(4 * user, 4 * user + 4))).reshape(push[user].shape)
        torch.testing.assert_close(logits[user], expected, rtol=0, atol=1e-10)
        theirs = torch.autograd.grad((expected * push[user]).sum(), [*mine.values()])
        for name, ours, their in zip(blocks, gradients, theirs, strict=True):
            torch.testing.assert_close(ours[user], their, rtol=0, atol=1e-10, msg=f"{name} of user {user}")


@pytest.mark.parametrize("engine", ["flat", "loop"])
def test_a_round_is_that_of_a_plain_loop(tmp_path: Path, engine: Any) -> None:
    """A user's change after local epochs in batches is what gradient steps on its own copy give."""
    on = data()
    found = wrapped("transformer and head", on, torch.float64, engine=engine)
    chosen = method(found, "personal-lora", lr=0.3, epochs=2, batch_size=2, personal_decay=0.0, head="personal")
    engine_ = toy_engine(tmp_path, on, chosen, foundation=found)
    engine_.round(1)
    shard, model = engine_.shards[0], cast(WrappedModel, engine_.model)
    layout, settings = model.layout, cast(AdapterSettings, chosen.settings)
    flat = shard.weights_of(np.arange(3), engine_.server.state)
    from fedpa.federation.schedule import shuffled_rows

    source = RowSource(on, CPU)
    for user in range(3):
        mine = {n: b[0].detach().requires_grad_() for n, b in started(model, 1, torch.float64).items()}
        begin, count = int(shard.rows.begin[user]), int(shard.rows.train[user])
        for epoch in range(2):
            order = shuffled_rows(0, 1, epoch, shard.rows.keys[[user]], shard.rows.train[[user]])[0]
            for first in range(0, count, 2):
                where = begin + order[first : min(first + 2, count)]
                alone = of_user(found.model, found.targets, found.forward.trained, mine, settings)
                rows = source.of_shard(shard.rows, where)
                loss = nn.functional.binary_cross_entropy_with_logits(alone(rows), shard.rows.labels[where])
                steps = torch.autograd.grad(loss, [*mine.values()])
                mine = {
                    n: (v - 0.3 * s).detach().requires_grad_() for (n, v), s in zip(mine.items(), steps, strict=True)
                }
        for name, view in layout.views(flat).items():
            torch.testing.assert_close(view[user], mine[name], rtol=0, atol=1e-10, msg=name)


@pytest.mark.parametrize("name", ["fedit", "ffa-lora", "fedsa-lora", "personal-lora", "local-only", "fedpa"])
def test_scopes_are_those_of_the_method(name: str) -> None:
    on = data()
    found = wrapped("transformer and head", on, torch.float32)
    layout = method(found, name).model(found, on, 0, CPU).layout
    scopes = {n.removeprefix("layers.score."): str(s) for n, s in layout.scopes.items()}
    expected = {
        "fedit": ("shared", "shared", "shared"),
        "ffa-lora": ("frozen", "shared", "shared"),
        "fedsa-lora": ("shared", "personal", "shared"),
        "personal-lora": ("personal", "personal", "shared"),
        "local-only": ("personal", "personal", "personal"),
        "fedpa": ("personal", "personal", "shared"),
    }[name]
    assert (scopes["user.a"], scopes["user.b"], scopes["head.head.weight"]) == expected
    if name == "fedpa":
        assert scopes["group.kind.a"] == "group(kind)"
        assert scopes["gate.0.weight"] == scopes["gate.1.bias"] == "shared"


def test_names_of_a_module_are_taken_for_no_scope() -> None:
    """A target called user_tower.group.0 has shared gates and averaged group LoRA like any other."""

    class Tower(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.user_tower = nn.ModuleDict({"group": nn.ModuleList([nn.Linear(2, 3)]), "user": nn.Linear(3, 1)})

        def forward(self, rows: Any) -> Tensor:
            hidden = torch.relu(self.user_tower["group"][0](rows.item_codes.float()))  # type: ignore[index]
            return self.user_tower["user"](hidden).squeeze(-1)  # type: ignore[no-any-return]

    on = data()
    found = fedpa.wrap(Tower(), "all-linear")
    scopes = method(found).model(found, on, 0, CPU).layout.scopes
    for target in ("layers.user_tower/group/0", "layers.user_tower/user"):
        assert str(scopes[f"{target}.gate.0.weight"]) == "shared"
        assert str(scopes[f"{target}.group.size.b"]) == "group(size)"
        assert str(scopes[f"{target}.user.b"]) == "personal"


def test_settings_given_to_adapt_win_over_those_of_wrap_and_those_over_the_preset() -> None:
    found = fedpa.wrap(made(DCN, data()), ["cross.*"], rank=2, alpha=3.0, groups=("size",), gate_hidden=5)
    chosen = FedPA.configured("default", {"alpha": 9.0}, found).settings
    assert isinstance(chosen, AdapterSettings)
    assert (chosen.rank, chosen.alpha, chosen.groups, chosen.gate_hidden) == (2, 9.0, ("size",), (5, 5))
    assert not chosen.wide
    assert not chosen.personal_embedding
    lora = find_method("fedit").configured("default", {}, found).settings
    assert isinstance(lora, AdapterSettings)
    assert (lora.rank, lora.groups) == (2, ())


def test_one_named_label_is_as_none() -> None:
    on = data()
    found = fedpa.wrap(made(DCN, on), ["cross.*"], labels=("label",))
    found.check(on)
    rows = ShardRows.of(on, dtype=torch.float32, device=CPU)
    assert method(found).rows(found, on, rows, None).every_label is None


def test_nothing_to_train_is_an_error() -> None:
    on = data()
    found = fedpa.wrap(made(DCN, on), ["cross.*"])
    with pytest.raises(ConfigError, match=r"DCN: with these settings nothing is trained[\s\S]*train="):
        method(found, "head-only").model(found, on, 0, CPU)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"wide": True}, "setting 'wide': a wide term is of the backbone"),
        ({"personal_embedding": True}, "setting 'personal_embedding': personal embeddings"),
        ({"gate_hidden": (3,)}, r"setting 'gate_hidden': expected one width per target \(4\), found \[3\]"),
        ({"dtype": "float64"}, r"setting 'dtype': is float64, but the module computes in torch\.float32"),
    ],
)
def test_what_a_wrapped_module_does_not_have_is_refused(values: dict[str, Any], message: str) -> None:
    on = data()
    found = wrapped("dcn", on, torch.float32)
    with pytest.raises(ConfigError, match=message):
        method(found, **values).model(found, on, 0, CPU)


@pytest.mark.parametrize(
    "name", ["fedavg+foundation", "fedmf+foundation", "pooled+from-foundation", "ditto+foundation"]
)
def test_methods_that_take_the_backbone_apart_are_refused(tmp_path: Path, name: str) -> None:
    on = data()
    found = wrapped("dcn", on, torch.float32)
    base, _, preset = name.partition("+")
    chosen = find_method(base).configured(preset, {}, found)
    with pytest.raises(ConfigError, match="cannot adapt a wrapped module"):
        if isinstance(chosen, FederatedMethod):
            chosen.model(found, on, 0, CPU)
        else:
            chosen.needed(found)


@pytest.mark.parametrize("case", ["dcn", "two labels"])
def test_a_loss_is_the_weighted_sum_over_rows_and_the_sum_over_labels(case: str) -> None:
    on = data()
    found = wrapped(case, on, torch.float64)
    model = inner(method(found), found, on)
    draw = torch.Generator().manual_seed(0)
    shape = (3, 4, 2) if case == "two labels" else (3, 4)
    logits = torch.randn(shape, generator=draw, dtype=torch.float64)
    labels = (torch.rand(shape, generator=draw) < 0.5).double()
    weights = torch.tensor([[0.5, 0.5, 0, 0], [0.25] * 4, [1, 0, 0, 0]], dtype=torch.float64)
    rows = -(labels * logits.sigmoid().log() + (1 - labels) * (1 - logits.sigmoid()).log())
    expected = (weights * (rows.sum(-1) if rows.dim() == 3 else rows)).sum(1)
    torch.testing.assert_close(model.loss(logits, labels, weights), expected)
