"""FedPA: where it starts, what moves, and what belongs to whom; `test_fedpa_parts` has the default preset's parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from arrays import CPU, ArrayDataset, ToyEngine, catalogue, newcomer, toy, toy_engine, toy_foundation
from fedpa.data.dataset import Part
from fedpa.errors import ConfigError
from fedpa.evaluation.metrics import log_loss
from fedpa.federation.parameters import PERSONAL, SHARED, Scope, group
from fedpa.methods import FrozenFoundation
from fedpa.methods.fedpa import FedPA
from fedpa.methods.method import find_method
from fedpa.models.adapted import AdaptedMLP, AdapterSettings
from fedpa.models.bias import WithPersonalBias
from fedpa.settings import Settings

SMALL: dict[str, Any] = {"rank": 2, "gate_hidden": (3, 2), "item_counts": 0}


def configured(preset: str = "default", **values: Any) -> FedPA:
    return cast(FedPA, FedPA.configured(preset, SMALL | values))


def data(**values: Any) -> ArrayDataset:
    return toy(40, np.full(40, 30), context=True, **values)


def weights(engine: ToyEngine) -> dict[str, Tensor]:
    """Blocks of all users [users, *shape]."""
    shard = engine.shards[0]
    return engine.model.layout.views(shard.weights_of(np.arange(len(shard.rows.users)), engine.server.state))


def named(engine: ToyEngine) -> dict[str, Tensor]:
    """All parameters, personal ones with a leading user axis, shared ones once."""
    layout, shard = engine.model.layout, engine.shards[0]
    assert layout.personal is not None
    flat = shard.weights_of(np.arange(len(shard.rows.users)), engine.server.state)
    return layout.personal.split(layout.personal.take(flat)) | engine.server.named()


@pytest.mark.parametrize("features", ["reference", "causal"])
@pytest.mark.parametrize("values", [{}, {"rank": 5, "alpha": 7.0}, {"groups": ()}, {"groups": ("size",)}])
def test_the_default_starts_at_the_foundation(tmp_path: Path, features: str, values: dict[str, Any]) -> None:
    found = data(features=features)
    engine = toy_engine(tmp_path, found, configured(**values))
    rows = engine.shards[0].rows
    if features == "causal":
        assert any(int(table.min()) < 0 for table in rows.groups.values())
    expected = FrozenFoundation(Settings()).scores(engine.foundation, found, rows)
    scores = engine.shards[0].scores(engine.server.state)
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-6)
    blocks, batch = catalogue(engine, torch.zeros(40, 20, 1, dtype=torch.int64))
    with torch.inference_mode():
        logits, gates = engine.model.forward(blocks, batch)
        codes = torch.from_numpy(found.user_codes).long()[:, None].expand(-1, 20, -1)
        items = torch.from_numpy(found.item_codes).long().expand(40, -1, -1)
        direct = engine.foundation.model(codes, items, batch.context)
    np.testing.assert_allclose(logits.numpy(), direct.numpy(), rtol=0, atol=1e-6)
    for gate in gates:
        torch.testing.assert_close(gate, torch.ones_like(gate), rtol=0, atol=1e-6)


@pytest.mark.parametrize("number", [0, 17, 39])
def test_newcomers_start_at_the_foundation_too(tmp_path: Path, number: int) -> None:
    found = data(features="causal")
    engine = toy_engine(tmp_path, found, configured(), divided=[np.array([5, 6])])
    blocks, batch = newcomer(engine, number, torch.zeros(1, 20, 1, dtype=torch.int64))
    with torch.inference_mode():
        logits, _ = engine.model.forward(blocks, batch)
        codes = torch.from_numpy(found.user_codes[number]).long().expand(20, -1)
        direct = engine.foundation.model(codes, torch.from_numpy(found.item_codes).long(), batch.context[0])
    np.testing.assert_allclose(logits[0].numpy(), direct.numpy(), rtol=0, atol=1e-6)


def test_open_gates_start_on_the_backbone(tmp_path: Path) -> None:
    engine = toy_engine(tmp_path, data(), configured(gate_init="open"))
    start = engine.server.named()
    for layer in range(2):
        assert start[f"layers.{layer}.gate.1.bias"].tolist() == [3.0, 0.0, 0.0, 0.0]
        assert start[f"layers.{layer}.gate.1.weight"].any()
    assert engine.server.named()["head.weight"].tolist() == engine.foundation.model.head.weight.tolist()


@pytest.mark.parametrize("init", ["random", "zero"])
def test_up_starts_at_zero_and_down_as_said(tmp_path: Path, init: str) -> None:
    engine = toy_engine(tmp_path, data(), configured(lora_init=init))
    for name, value in named(engine).items():
        if name.endswith(".b"):
            assert not value.any(), name
        if name.endswith(".a"):
            assert bool(value.any()) == (init == "random"), name
            bound = value.shape[-1] ** -0.5
            assert float(value.abs().max()) <= bound
    users = named(engine)["layers.0.user.a"]
    assert torch.equal(users, users[:1].expand_as(users))


def test_starts_depend_on_the_seed_alone(tmp_path: Path) -> None:
    found = data()
    models = [configured().build(toy_foundation(found), found, seed, CPU) for seed in (3, 3, 4)]
    starts = [{p.name: p.start for p in model.layout.parameters() if isinstance(p.start, Tensor)} for model in models]
    assert all(torch.equal(value, starts[1][name]) for name, value in starts[0].items())
    differing = {name for name, value in starts[0].items() if not torch.equal(value, starts[2][name])}
    assert {name for name in starts[0] if name.endswith(".a") or ".gate.0." in name} == differing
    assert not torch.equal(starts[0]["layers.0.user.a"], starts[0]["layers.0.group.kind.a"])


def test_published_lora_stays_dead_while_gates_move(tmp_path: Path) -> None:
    engine = toy_engine(tmp_path, data(), configured("reference"))
    assert engine.method.settings.lr == 0.1
    before = named(engine)
    for number in range(3):
        engine.round(number)
    after = named(engine)
    for name, value in after.items():
        if name.endswith((".a", ".b")):
            assert not value.any(), name
        elif ".gate.1." in name or name in {"user_embedding", "head.weight", "head.bias"}:
            assert not torch.equal(value, before[name]), name


@pytest.mark.parametrize("preset", ["default", "repaired"])
def test_repaired_lora_moves(tmp_path: Path, preset: str) -> None:
    engine = toy_engine(tmp_path, data(), configured(preset, epochs=1, dtype="float64"))
    before = named(engine)
    engine.round(0)
    first = named(engine)
    engine.round(1)
    for name, value in named(engine).items():
        if name.endswith(".b"):
            assert first[name].any(), name
        if name.endswith(".a"):  # its gradient passes through B, which is zero in the first round
            assert torch.equal(first[name], before[name]), name
        assert not torch.equal(value, before[name]), name


@pytest.mark.parametrize("rank", [1, 4])
@pytest.mark.parametrize("groups", [(), ("kind",), ("size", "kind"), None])
def test_shapes_by_rank_and_groups(tmp_path: Path, rank: int, groups: tuple[str, ...] | None) -> None:
    engine = toy_engine(tmp_path, data(), configured(rank=rank, groups=groups))
    keys = ("kind", "size") if groups is None else groups
    model = cast(AdaptedMLP, cast(WithPersonalBias, engine.model).model)
    assert model.branches == 2 + len(keys)
    assert engine.round(0).participants == 40
    into, hidden, gates, wide, items = 3 * 5, (6, 4), (3, 2), 3 * 2, 20
    layers = list(zip((into, *hidden), hidden, gates, strict=False))
    lora = sum(rank * (i + o) for i, o, _ in layers)
    shared = sum(g * (i + 1) + (2 + len(keys)) * (g + 1) for i, _, g in layers) + hidden[-1] + 1
    expected = {f"group({key})": lora + wide for key in keys}
    expected |= {"personal": lora + 6 + wide + 1, "shared": shared + wide + items}
    assert engine.model.layout.sizes_by_scope() == expected
    _, explained = engine.model.forward(*catalogue(engine, torch.zeros(40, items, 1, dtype=torch.int64)))
    assert [tuple(gate.shape) for gate in explained] == [(40, items, 2 + len(keys))] * 2


@pytest.mark.parametrize(
    ("preset", "values"),
    [
        ("default", {}),
        ("default", {"optimizer": "adam", "lr": 0.01, "wide_rate": 1.0, "item_rate": 1.0}),
        ("default", {"batch_size": 6}),
        ("repaired", {"lr": 0.03, "gate_init": "foundation"}),
        ("repaired", {"lr": 0.1}),
        ("repaired", {"lr": 0.03, "gate_init": "foundation", "personal_bias": True}),
        ("repaired", {"lr": 0.01, "gate_init": "foundation", "epochs": 2, "batch_size": 6}),
    ],
)
def test_the_loss_falls(tmp_path: Path, preset: str, values: dict[str, Any]) -> None:
    engine = toy_engine(tmp_path, data(), configured(preset, **values))
    rows = engine.shards[0].rows
    labels = rows.labels.numpy().astype(np.int8)
    held_out = (rows.part == Part.VAL) | (rows.part == Part.TEST)

    def loss() -> float:
        found = log_loss(labels[held_out], engine.shards[0].scores(engine.server.state)[held_out])
        assert found is not None
        return found

    before = loss()
    uploads = [engine.round(number) for number in range(10)]
    losses = [upload.loss / upload.participants for upload in uploads]
    assert losses[-1] < 0.9 * losses[0]
    assert loss() < before


def test_the_scope_of_every_parameter() -> None:
    found = data()
    model = configured().model(toy_foundation(found), found, 0, CPU)
    expected: dict[str, Scope] = {
        "user_embedding": PERSONAL,
        "user_bias": PERSONAL,
        "head.weight": SHARED,
        "head.bias": SHARED,
        "wide.all": SHARED,
        "wide.user": PERSONAL,
        "wide.group.kind.v": group("kind"),
        "wide.group.size.v": group("size"),
        "item_bias": SHARED,
    }
    for layer in range(2):
        for half in range(2):
            for kind in ("weight", "bias"):
                expected[f"layers.{layer}.gate.{half}.{kind}"] = SHARED
        for factor in "ab":
            expected[f"layers.{layer}.user.{factor}"] = PERSONAL
            for key in ("kind", "size"):
                expected[f"layers.{layer}.group.{key}.{factor}"] = group(key)
    assert model.layout.scopes == expected


def test_group_keys_with_dots_and_odd_names() -> None:
    method = configured()
    assert method.scope("layers.0.group.follow.user.range.a") == group("follow.user.range")
    assert method.scope("layers.1.group.user_kind.b") == group("user_kind")
    assert method.scope("wide.group.follow.user.range.v") == group("follow.user.range")


def test_users_of_an_unknown_value_have_no_group_adapter(tmp_path: Path) -> None:
    engine = toy_engine(tmp_path, data(features="causal"), configured(groups=("kind",)))
    for number in range(3):
        engine.round(number)
    values = engine.shards[0].rows.groups["kind"]
    blocks = weights(engine)
    rank = 2
    for layer in range(2):
        lora = blocks[f"layers.{layer}.up"][:, rank:]
        assert not lora[values < 0].any()
        for value in range(2):
            assert lora[values == value].any()
            table = engine.server.named()[f"layers.{layer}.group.kind.b"][value]
            assert torch.equal(lora[values == value], table.expand(int((values == value).sum()), -1, -1))


def test_a_wrong_number_of_gates_and_an_unknown_group_are_refused() -> None:
    found = data()
    with pytest.raises(ConfigError, match=r"'gate_hidden': expected one width per layer of the foundation \(2\)"):
        configured(gate_hidden=(3,)).build(toy_foundation(found), found, 0, CPU)
    with pytest.raises(ConfigError, match="group 'town', which the data set lacks"):
        configured(groups=("town",)).build(toy_foundation(found), found, 0, CPU)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rnak": 3}, "unknown setting 'rnak'; did you mean 'rank'"),
        ({"rank": 0}, "setting 'rank'"),
        ({"gate_init": "shut"}, "setting 'gate_init'"),
        ({"lr": -1, "epochs": 0}, "setting 'epochs'.*setting 'lr'"),
    ],
)
def test_wrong_settings_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        configured(**values)
    with pytest.raises(ConfigError, match="unknown preset 'best', known: default"):
        configured("best")


class LocalGates(FedPA):
    """Gates stay with their user."""

    name = "local-gates"

    def scope(self, name: str) -> Scope:
        return PERSONAL if ".gate." in name else super().scope(name)


class AllShared(FedPA):
    """One model for everybody."""

    name = "all-shared"

    def scope(self, name: str) -> Scope:
        return PERSONAL if name == "user_embedding" else SHARED


def test_a_method_of_ones_own_is_a_rule(tmp_path: Path) -> None:
    engine = toy_engine(tmp_path / "one", data(), LocalGates(AdapterSettings(**SMALL)))
    assert not any(".gate." in name for name in engine.server.named())
    for number in range(2):
        engine.round(number)
    gates = named(engine)["layers.0.gate.1.bias"]
    assert len(torch.unique(gates, dim=0)) > 20
    shared = toy_engine(tmp_path / "two", data(), AllShared(AdapterSettings(**SMALL)))
    shared.round(0)
    assert set(shared.model.layout.sizes_by_scope()) == {"personal", "shared"}
    blocks = weights(shared)
    assert torch.equal(blocks["layers.0.up"], blocks["layers.0.up"][:1].expand_as(blocks["layers.0.up"]))


def test_a_loss_of_ones_own(tmp_path: Path) -> None:
    class Doubled(FedPA):
        name = "doubled"

        def loss(self, logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
            return 2 * super().loss(logits, labels, weights)

    values = SMALL | {"optimizer": "sgd", "dtype": "float64"}
    single = toy_engine(tmp_path / "one", data(), FedPA(AdapterSettings(**values, lr=0.2)))
    double = toy_engine(tmp_path / "two", data(), Doubled(AdapterSettings(**values, lr=0.1)))
    uploads = [engine.round(0) for engine in (single, double)]
    assert uploads[1].loss == pytest.approx(2 * uploads[0].loss, rel=1e-9)
    for one, two in zip(single.server.state, double.server.state, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-12)


def test_a_method_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from fedpa.federation.parameters import PERSONAL\n"
        "from fedpa.methods import FedPA\n"
        "class Alone(FedPA):\n"
        "    name = 'alone'\n"
        "    def scope(self, name):\n"
        "        return PERSONAL\n"
    )
    method = find_method(f"{file}:Alone").configured("default", SMALL)
    engine = toy_engine(tmp_path / "engine", data(), cast(FedPA, method))
    upload = engine.round(0)
    assert (upload.sums, upload.weights_up, upload.participants) == ([], 0, 40)
    assert engine.personal().any(1).all()
    with pytest.raises(ConfigError, match="has no class Other"):
        find_method(f"{file}:Other")
    with pytest.raises(ConfigError, match="no such file"):
        find_method(f"{tmp_path}/none.py:Alone")
    with pytest.raises(ConfigError, match="did you mean 'fedpa'"):
        find_method("fedpaa")
