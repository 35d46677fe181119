"""The parts of FedPA's default preset by hand: the wide term, the items' and the user's bias, and rows without each."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from arrays import CPU, SET, ArrayDataset, ToyEngine, catalogue, newcomer, toy, toy_engine, toy_foundation
from fedpa.errors import ConfigError
from fedpa.federation.rows import group_values
from fedpa.methods import compared_specs, title_of
from fedpa.methods.fedpa import BEST, FedPA

USERS, ITEMS = 12, 20
SMALL: dict[str, Any] = {"rank": 2, "gate_hidden": (3, 2), "dtype": "float64"}

LAYERS = range(2)
USER_LORA = {f"layers.{layer}.user.{factor}" for layer in LAYERS for factor in "ab"}
GROUP_LORA = {f"layers.{layer}.group.{key}.{factor}" for layer in LAYERS for key in ("kind", "size") for factor in "ab"}
GATES = {f"layers.{layer}.gate.{half}.{kind}" for layer in LAYERS for half in range(2) for kind in ("weight", "bias")}
GROUP_WIDE = {"wide.group.kind.v", "wide.group.size.v"}
WIDE = {"wide.all", "wide.user", *GROUP_WIDE}
PUBLISHED = USER_LORA | GROUP_LORA | GATES | {"user_embedding", "head.weight", "head.bias"}
EVERYTHING = PUBLISHED | WIDE | {"item_bias", "user_bias"}


def configured(preset: str = "default", **values: Any) -> FedPA:
    return cast(FedPA, FedPA.configured(preset, SMALL | values))


def data() -> ArrayDataset:
    """With causal features, so that some users' groups are unknown."""
    return toy(USERS, np.full(USERS, 10), items=ITEMS, context=True, features="causal")


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def names(preset: str, **values: Any) -> set[str]:
    """Of all parameters, tables included."""
    found = data()
    return set(
        configured(preset, **values).model(toy_foundation(found, dtype=torch.float64), found, 0, CPU).layout.scopes
    )


def item_vectors(engine: ToyEngine) -> Tensor:
    """Feature embeddings of every item, one after another [items, 2 x 3], from the foundation's table."""
    table = engine.foundation.model.tables["item"].get_parameter("weight").detach()
    types, colours = torch.from_numpy(engine.data.item_codes).long().T
    return torch.cat([table[:4][types], table[4:][colours]], 1)


def foundation_logits(engine: ToyEngine, context: Tensor) -> Tensor:
    """Of every user for every item [users, items]."""
    codes = torch.from_numpy(engine.data.user_codes).long()[:, None].expand(-1, ITEMS, -1)
    items = torch.from_numpy(engine.data.item_codes).long().expand(USERS, -1, -1)
    with torch.no_grad():
        return cast(Tensor, engine.foundation.model(codes, items, context))


def set_parts(engine: ToyEngine, chosen: dict[str, Tensor]) -> None:
    """Replace parameters that start at zero: on the server, and on the users' devices [users, *shape]."""
    layout, shard = engine.model.layout, engine.shards[0]
    sent = engine.server.named()
    engine.server.load(sent | {name: value for name, value in chosen.items() if name in sent}, "a test")
    assert layout.personal is not None
    kept = torch.zeros(USERS, layout.personal_size, dtype=torch.float64)
    for name, view in layout.personal.split(kept).items():
        if name in chosen:
            view.copy_(chosen[name])
    shard.store.begin(np.arange(USERS), shard.touched, SET)
    shard.store.write(np.arange(USERS), kept.numpy())
    shard.store.commit()


def draw(*shape: int) -> Tensor:
    """Random values that depend on the shape alone."""
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def random_context() -> Tensor:
    return torch.randint(0, 5, (USERS, ITEMS, 1), generator=torch.Generator().manual_seed(0))


def test_the_wide_term_and_the_biases_add_what_their_formula_says(tmp_path: Path) -> None:
    """(v + sum_j v_j + v_u) . e_i, the item's bias and the user's; of an unknown group value nothing is added."""
    found = data()
    engine = toy_engine(tmp_path, found, configured())
    context = random_context()
    shared, kind, size = draw(1, 6), draw(2, 1, 6), draw(1, 1, 6)
    own, item_bias, user_bias = draw(USERS, 1, 6), draw(ITEMS, 1), draw(USERS, 1)
    wide = {"wide.all": shared, "wide.user": own, "wide.group.kind.v": kind, "wide.group.size.v": size}
    set_parts(engine, wide | {"item_bias": item_bias, "user_bias": user_bias})
    vectors, logits = item_vectors(engine), foundation_logits(engine, context)
    values, unknown = group_values(found), 0
    expected = torch.empty(USERS, ITEMS, dtype=torch.float64)
    for user in range(USERS):
        taste = shared[0] + own[user, 0]
        for key, table in (("kind", kind), ("size", size)):
            value = values[key][user]
            unknown += value < 0
            if value >= 0:
                taste = taste + table[value, 0]
        for item in range(ITEMS):
            added = sum(float(a) * float(b) for a, b in zip(taste, vectors[item], strict=True))
            expected[user, item] = logits[user, item] + added + item_bias[item, 0] + user_bias[user, 0]
    assert 0 < unknown < 2 * USERS
    with torch.inference_mode():
        whole, _ = engine.model.forward(*catalogue(engine, context))
    assert_close(whole, expected)
    # The same through the rows that each user touches, in the rows' own context.
    rows, scores = engine.shards[0].rows, engine.shards[0].scores(engine.server.state)
    for place, row in enumerate(rows.row):
        user, item = int(rows.user[place]), int(rows.items[place])
        own_context = torch.from_numpy(found.context_codes[row].astype(np.int64)).expand(USERS, ITEMS, 1)
        logit = foundation_logits(engine, own_context)[user, item] + (expected - logits)[user, item]
        assert scores[place] == pytest.approx(float(logit.sigmoid()), abs=1e-12)


def test_a_newcomer_has_all_but_the_personal_parts(tmp_path: Path) -> None:
    found = data()
    engine = toy_engine(tmp_path, found, configured())
    context = random_context()
    shared, kind, item_bias = draw(1, 6), draw(2, 1, 6), draw(ITEMS, 1)
    personal = {"wide.user": draw(USERS, 1, 6), "user_bias": draw(USERS, 1)}
    set_parts(engine, {"wide.all": shared, "wide.group.kind.v": kind, "item_bias": item_bias, **personal})
    logits, value = foundation_logits(engine, context), group_values(found)["kind"]
    for user in range(USERS):
        taste = shared[0] + (kind[value[user], 0] if value[user] >= 0 else 0.0)
        with torch.inference_mode():
            (whole,), _ = engine.model.forward(*newcomer(engine, user, context[user : user + 1]))
        assert_close(whole, logits[user] + item_vectors(engine) @ taste + item_bias[:, 0])


WITHOUT: dict[str, tuple[dict[str, Any], set[str]]] = {
    "no-user-lora": ({"user_lora": False}, USER_LORA),
    "no-group-lora": ({"groups": ()}, GROUP_LORA | GROUP_WIDE),  # groups at all
    "no-gate": ({"gate": False}, GATES),
    "no-personal-embeddings": ({"personal_embedding": False}, {"user_embedding"}),
    "no-lora": ({"lora": False}, USER_LORA | GROUP_LORA | GATES),  # without branches there is nothing to weigh
    "no-wide": ({"wide": False}, WIDE),
    "no-item-bias": ({"item_bias": False}, {"item_bias"}),
    "no-item-counts": ({"item_counts": 0}, set()),
    "no-user-bias": ({"personal_bias": False}, {"user_bias"}),
    "no-prior": ({"personal_decay": 0.0}, set()),
}
"""By preset what it changes of the default's settings, and which parameters it lacks."""


@pytest.mark.parametrize("preset", sorted(name for name in FedPA.presets if name.startswith("no-")))
def test_a_preset_lacks_exactly_its_part(preset: str) -> None:
    changed, lacking = WITHOUT[preset]
    before, after = configured().settings.model_dump(), configured(preset).settings.model_dump()
    assert {key: value for key, value in after.items() if value != before[key]} == changed
    assert names(preset) == EVERYTHING - lacking
    assert preset in FedPA.compared


def test_an_ablation_is_the_default_without_what_it_holds() -> None:
    """It follows the default's chosen settings, but no tuning gives it back what it is without."""
    assert FedPA.follows == dict.fromkeys(WITHOUT, "default")
    assert {preset: FedPA.held[preset] for preset in WITHOUT} == {
        preset: tuple(changed) for preset, (changed, _) in WITHOUT.items()
    }
    assert {preset: dict(FedPA.presets[preset]) for preset in WITHOUT} == {
        preset: {**BEST, **changed} for preset, (changed, _) in WITHOUT.items()
    }
    assert FedPA.held.keys() == FedPA.presets.keys()
    assert FedPA.held["reference"] == ("*",)


def test_titles_of_the_rows() -> None:
    specs = [spec for spec in compared_specs() if spec.partition("+")[0] == "fedpa"]
    assert [(spec, title_of(spec)) for spec in specs] == [
        ("fedpa+reference", "FedPA, as published"),
        ("fedpa+repaired", "FedPA, repaired"),
        ("fedpa", "FedPA, extended"),
        ("fedpa+no-user-lora", "- without user-level LoRA"),
        ("fedpa+no-group-lora", "- without group-level parts"),
        ("fedpa+no-lora", "- without any LoRA"),
        ("fedpa+no-gate", "- without gates"),
        ("fedpa+no-personal-embeddings", "- without personal embeddings"),
        ("fedpa+no-wide", "- without the wide term"),
        ("fedpa+no-item-bias", "- without item biases"),
        ("fedpa+no-item-counts", "- without everybody's item counts"),
        ("fedpa+no-user-bias", "- without the user's bias"),
        ("fedpa+no-prior", "- without the prior"),
    ]


@pytest.mark.parametrize("preset", sorted(FedPA.presets))
def test_item_ids_are_read_where_items_have_biases(preset: str) -> None:
    ids = "" if preset in ("reference", "repaired", "no-item-bias") else ", item ids"
    assert configured(preset).inputs == "features, counters" + ids


def test_a_near_preset_is_named() -> None:
    with pytest.raises(ConfigError, match="unknown preset 'no-gates', known: default, no-gate, ") as caught:
        configured("no-gates")
    assert caught.value.fix == "write no-gate"
    with pytest.raises(ConfigError) as caught:
        configured("zzz")
    assert caught.value.fix == "name one of these, or leave it out"


def test_published_presets_have_the_published_parts_alone() -> None:
    assert names("default") == EVERYTHING
    assert names("reference") == names("repaired") == PUBLISHED


@pytest.mark.parametrize("preset", sorted(FedPA.presets.keys() - {"reference", "repaired"}))
def test_without_a_part_the_start_is_the_foundation_too(tmp_path: Path, preset: str) -> None:
    engine = toy_engine(tmp_path, data(), configured(preset))
    context = random_context()
    with torch.inference_mode():
        logits, _ = engine.model.forward(*catalogue(engine, context))
    assert_close(logits, foundation_logits(engine, context))


def test_the_prior_holds_what_is_personal_back(tmp_path: Path) -> None:
    """Of weight 10 beside six training rows, by one implicit step at rate 0.1, ten times that of the wide term."""
    moved = []
    for preset in ("default", "no-prior"):
        engine = toy_engine(tmp_path / preset, data(), configured(preset, epochs=1))
        engine.round(1)
        layout = engine.model.layout
        assert layout.personal is not None
        moved.append((layout.personal.split(torch.from_numpy(engine.personal())), engine.server.named()))
    assert engine.shards[0].rows.train.tolist() == [6] * USERS
    (held, shared), (free, likewise) = moved
    for name, value in free.items():
        pull = 0.1 * 10 / 6 * (10 if name == "wide.user" else 1)
        assert_close(held[name] * (1 + pull), value)
        assert value.any() != name.endswith(".a"), name  # its gradient passes through B, which is zero
    for name, value in likewise.items():
        assert torch.equal(shared[name], value), name
