"""Adapters under every scope against one plain loop in float64: one user, one row, one step after another."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from arrays import ArrayDataset, ToyEngine, toy, toy_engine
from fedpa.data.dataset import Part
from fedpa.errors import ConfigError
from fedpa.methods import FederatedMethod, find_method
from fedpa.methods.lora import STEPS

EXACT: dict[str, Any] = {"rtol": 0, "atol": 1e-12}
USERS, RANK, LR = 6, 2, 0.4
SMALL: dict[str, Any] = {
    "item_counts": 0,
    "rank": RANK,
    "alpha": 3.0,
    "gate_hidden": (3, 2),
    "dtype": "float64",
    "optimizer": "sgd",
    "lr": LR,
    "epochs": 2,
}

# FedPA's default has more than the published parts; these are tried apart.
PUBLISHED: dict[str, Any] = {
    "wide": False,
    "item_bias": False,
    "personal_decay": 0.0,
    "table_prior": 0.0,
    "select": "auc",
}

LORA = ("layers.0.user", "layers.1.user")
HEAD = {"head.weight", "head.bias"}
A, B = {f"{lora}.a" for lora in LORA}, {f"{lora}.b" for lora in LORA}
GATES = {f"layers.{n}.gate.{half}.{kind}" for n in (0, 1) for half in (0, 1) for kind in ("weight", "bias")}
GROUPS = {
    f"group({key})": {f"layers.{n}.group.{key}.{factor}" for n in (0, 1) for factor in "ab"} for key in ("kind", "size")
}
EMBEDDING = {"user_embedding"}

# By method what is in each scope, written down from the papers.
SCOPES: dict[str, dict[str, set[str]]] = {
    "fedit": {"shared": A | B | HEAD},
    "ffa-lora": {"frozen": A, "shared": B | HEAD},
    "fedsa-lora": {"shared": A | HEAD, "personal": B},
    "personal-lora": {"personal": A | B, "shared": HEAD},
    "head-only": {"personal": HEAD},
    "user-bias": {"frozen": HEAD, "personal": {"user_bias"}},
    "biases": {"frozen": HEAD, "personal": {"user_bias"}},
    "local-only": {"personal": A | B | HEAD | GATES | EMBEDDING},
    "fedpa": {"personal": A | B | EMBEDDING, "shared": GATES | HEAD, **GROUPS},
    "fedpa+no-user-lora": {"personal": EMBEDDING, "shared": GATES | HEAD, **GROUPS},
    "fedpa+no-group-lora": {"personal": A | B | EMBEDDING, "shared": GATES | HEAD},
    "fedpa+no-gate": {"personal": A | B | EMBEDDING, "shared": HEAD, **GROUPS},
    "fedpa+no-personal-embeddings": {"personal": A | B, "shared": GATES | HEAD, **GROUPS},
    "fedpa+no-lora": {"personal": EMBEDDING, "shared": HEAD},
}
every = pytest.mark.parametrize("spec", SCOPES)


def configured(spec: str, **values: Any) -> FederatedMethod:
    name, _, preset = spec.partition("+")
    published = PUBLISHED | {"personal_bias": spec in ("user-bias", "biases")}
    return cast(FederatedMethod, find_method(name).configured(preset or "default", published | SMALL | values))


def data() -> ArrayDataset:
    return toy(USERS, np.array([5, 9, 14, 20, 9, 7]), context=True)


class PlainLoop:
    """Devices and server of one federation; parameters by name, those of groups by value."""

    def __init__(self, engine: ToyEngine, scopes: dict[str, set[str]]) -> None:
        self.engine, self.data = engine, engine.data
        self.kind = {name: scope for scope, names in scopes.items() for name in names}
        starts = {p.name: p.start for p in engine.model.layout.parameters()}
        assert starts.keys() == self.kind.keys()
        self.frozen = {n: w.detach() for n, w in engine.foundation.model.state_dict().items()}
        fixed = {name: start.double() for name, start in starts.items() if isinstance(start, Tensor)}
        self.server = {name: fixed[name] for name in fixed if self.kind[name] in ("shared", "frozen")}
        self.groups = {
            (name, value): fixed[name] for name in fixed for value in range(3) if self.kind[name].startswith("group")
        }
        own = {name: fixed[name] for name in fixed if self.kind[name] == "personal"}
        embeddings = [{"user_embedding": self.embed("user", codes)} for codes in engine.data.user_codes]
        self.devices = [{**own, **(e if "user_embedding" in self.kind else {})} for e in embeddings]

    def embed(self, side: str, codes: Any) -> Tensor:
        table, offset = self.frozen[f"tables.{side}.weight"], {"user": 3, "item": 4, "context": 5}[side]
        return torch.cat([table[int(code) + feature * offset] for feature, code in enumerate(codes)])

    def downloaded(self, user: int) -> dict[str, Tensor]:
        found = self.server | self.devices[user]
        for (name, value), start in self.groups.items():
            if value == self.value(name, user):
                found[name] = start
        return found

    def value(self, name: str, user: int) -> int:
        return int(self.data.groups[self.kind[name][6:-1]][user])

    def logit(self, w: dict[str, Tensor], row: int) -> Tensor:
        user, item = int(self.data.user[row]), int(self.data.item[row])
        mine = w.get("user_embedding", self.embed("user", self.data.user_codes[user]))
        context = self.embed("context", self.data.context_codes[row])
        x = torch.cat([mine, self.embed("item", self.data.item_codes[item]), context])
        for layer in (0, 1):
            name = f"layers.{layer}"
            low = [lora for lora in ("user", "group.kind", "group.size") if f"{name}.{lora}.a" in w]
            gate = torch.ones(1 + len(low), dtype=torch.float64)
            if f"{name}.gate.0.weight" in w:
                hidden = torch.relu(w[f"{name}.gate.0.weight"] @ x + w[f"{name}.gate.0.bias"])
                scores = w[f"{name}.gate.1.weight"] @ hidden + w[f"{name}.gate.1.bias"]
                gate = len(gate) * torch.softmax(scores, 0)
            out = gate[0] * torch.relu(self.frozen[f"{name}.weight"] @ x + self.frozen[f"{name}.bias"])
            for place, lora in enumerate(low):
                down = w[f"{name}.{lora}.a"] @ x
                out = out + gate[1 + place] * (3.0 / RANK) * w[f"{name}.{lora}.b"].T @ down
            x = out
        return (w["head.weight"] @ x + w["head.bias"])[0] + w.get("user_bias", torch.zeros(1)).double()[0]

    def round(self, steps: int = 2, decay: float = 0.0, starts: list[dict[str, Tensor]] | None = None) -> None:
        changes: dict[Any, list[Tensor]] = {}
        for user in range(USERS):
            before = self.downloaded(user)
            w = {n: v.clone().requires_grad_(self.kind[n] != "frozen") for n, v in before.items()}
            rows = np.flatnonzero((self.data.user == user) & (self.data.part == Part.TRAIN))
            labels = torch.from_numpy(self.data.label[rows]).double()
            optimizer = torch.optim.SGD([v for v in w.values() if v.requires_grad], lr=LR)
            for _ in range(steps):
                logits = torch.stack([self.logit(w, int(row)) for row in rows])
                loss = binary_cross_entropy_with_logits(logits, labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                for name, start in (starts[user] if starts else {}).items():
                    # The minimum of |v - w|^2 / 2 lr + decay |v - start|^2 / 2 n, the implicit step.
                    w[name].data = start + (w[name].data - start) / (1 + LR * decay / len(rows))
            for name, value in w.items():
                kind = self.kind[name]
                if kind == "personal":
                    self.devices[user][name] = value.detach()
                elif kind != "frozen":
                    key: Any = name if kind == "shared" else (name, self.value(name, user))
                    changes.setdefault(key, []).append(value.detach() - before[name])
        for key, found in changes.items():
            table: dict[Any, Tensor] = self.server if isinstance(key, str) else self.groups
            table[key] = table[key] + torch.stack(found).mean(0)

    def scores(self) -> Any:
        found = [self.logit(self.downloaded(int(self.data.user[row])), row) for row in range(self.data.n_rows)]
        return torch.stack(found).sigmoid().numpy()


def blocks(engine: ToyEngine) -> dict[str, Tensor]:
    """Every parameter of every user, as it scores [users, *shape]."""
    flat = engine.shards[0].weights_of(np.arange(USERS), engine.server.state)
    layout = engine.model.layout
    return {p.name: flat[:, layout.places[p.name].begin :][:, : p.size].view(-1, *p.shape) for p in layout.parameters()}


@every
def test_three_rounds_are_those_of_a_plain_loop(tmp_path: Path, spec: str) -> None:
    engine = toy_engine(tmp_path, data(), configured(spec))
    loop = PlainLoop(engine, SCOPES[spec])
    np.testing.assert_allclose(engine.scores(), loop.scores(), **EXACT)
    for number in (1, 2, 3):
        before = loop.devices[0] | loop.server
        loop.round()
        engine.round(number)
    named = engine.server.named()
    for name, value in named.items():
        expected = (
            loop.server[name]
            if name in loop.server
            else torch.stack([loop.groups[name, number] for number in range(len(value))])
        )
        torch.testing.assert_close(value, expected, **EXACT)
    found = blocks(engine)
    for user in range(USERS):
        for name, value in loop.downloaded(user).items():
            torch.testing.assert_close(found[name][user], value, **EXACT)
    np.testing.assert_allclose(engine.scores(), loop.scores(), **EXACT)
    after = loop.devices[0] | loop.server
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert moved == {name for name in after if loop.kind[name] != "frozen"}


@every
def test_what_is_uploaded_follows_from_the_scopes(tmp_path: Path, spec: str) -> None:
    engine = toy_engine(tmp_path, data(), configured(spec))
    uploaded = {name for scope, names in SCOPES[spec].items() if scope not in ("frozen", "personal") for name in names}
    assert engine.server.named().keys() == uploaded
    sizes = {p.name: p.size for p in engine.model.layout.parameters()}
    assert engine.round(1).weights_up == USERS * sum(sizes[name] for name in uploaded)
    assert engine.model.layout.personal_size == sum(sizes[name] for name in SCOPES[spec].get("personal", ()))


def test_ffa_lora_never_moves_a(tmp_path: Path) -> None:
    engine = toy_engine(tmp_path, data(), configured("ffa-lora", optimizer="adam", proximal=0.1, personal_decay=0.1))
    before = {name: value.clone() for name, value in blocks(engine).items()}
    for number in (1, 2, 3):
        engine.round(number)
    after = blocks(engine)
    for name in A:
        assert torch.equal(after[name], before[name])
        assert before[name].any()
    for name in B:
        assert not torch.equal(after[name], before[name])
        assert torch.equal(after[name], after[name][:1].expand_as(after[name]))


def test_fedsa_lora_keeps_b_and_averages_a(tmp_path: Path) -> None:
    engine = toy_engine(tmp_path, data(), configured("fedsa-lora"))
    for number in (1, 2):
        engine.round(number)
    after = blocks(engine)
    for name in A | HEAD:
        assert torch.equal(after[name], after[name][:1].expand_as(after[name]))
    for name in B:
        assert len(torch.unique(after[name].flatten(1), dim=0)) == USERS
    assert not B & engine.server.named().keys()


@pytest.mark.parametrize(("head", "scope"), [("personal", "personal"), ("frozen", "frozen"), ("shared", "shared")])
def test_the_head_may_be_anybodys(tmp_path: Path, head: str, scope: str) -> None:
    engine = toy_engine(tmp_path, data(), configured("fedit", head=head))
    assert {engine.model.layout.scopes[name].kind for name in HEAD} == {scope}
    start = engine.foundation.model.head.weight
    engine.round(1)
    heads = blocks(engine)["head.weight"]
    assert (heads == start).all().item() == (head == "frozen")
    assert len(torch.unique(heads.flatten(1), dim=0)) == (USERS if head == "personal" else 1)


@pytest.mark.parametrize("spec", ["personal-lora", "fedpa", "head-only"])
def test_decay_pulls_what_is_personal_to_its_start(tmp_path: Path, spec: str) -> None:
    """By an implicit step after each local one, over rounds; what is shared feels nothing of it."""
    engine = toy_engine(tmp_path, data(), configured(spec, personal_decay=0.6))
    loop = PlainLoop(engine, SCOPES[spec])
    starts = [dict(device) for device in loop.devices]
    for number in (1, 2, 3):
        loop.round(decay=0.6, starts=starts)
        engine.round(number)
    found = blocks(engine)
    for user in range(USERS):
        for name, value in loop.downloaded(user).items():
            torch.testing.assert_close(found[name][user], value, **EXACT)


@pytest.mark.parametrize("spec", ["fedit", "personal-lora", "ffa-lora", "fedpa+no-gate"])
def test_without_gates_the_start_is_the_foundation(tmp_path: Path, spec: str) -> None:
    found = data()
    engine = toy_engine(tmp_path, found, configured(spec))
    codes = found.user_codes[found.user.astype(int)], found.item_codes[found.item.astype(int)], found.context_codes
    with torch.no_grad():
        expected = engine.foundation.model(*(torch.from_numpy(c).long() for c in codes)).sigmoid()
    np.testing.assert_allclose(engine.scores(), expected.numpy(), **EXACT)


def test_the_steps_of_the_presets_are_those_of_fedpas_default() -> None:
    """So that a row differs from another in the adapter alone; settings that a method lacks aside."""
    whole = find_method("fedpa").configured("default", {}).settings.model_dump()
    steps = {"optimizer": "sgd", "lr": 0.1, "epochs": 2, "alpha": 4.0, "personal_decay": 10.0}
    assert STEPS == steps == {key: whole[key] for key in steps}
    for name in ("fedit", "ffa-lora", "fedsa-lora", "personal-lora"):
        assert find_method(name).presets == {"default": steps}
    none: dict[str, Any] = {**steps, "lora": False}
    own = {**none, "head": "frozen", "personal_bias": True}
    assert find_method("head-only").presets == {"default": {**none, "head": "personal"}}
    assert find_method("user-bias").presets == {"default": own}
    table = {key: whole[key] for key in ("item_bias", "item_rate", "table_mean", "table_prior")}
    assert table == {"item_bias": True, "item_rate": 10.0, "table_mean": "touched", "table_prior": 5.0}
    assert find_method("biases").presets == {"default": own | table}
    alone = find_method("local-only").configured("default", {}).settings.model_dump()
    changed = {key: value for key, value in alone.items() if value != whole[key]}
    assert changed == {"groups": (), "item_bias": False, "item_counts": 0}


@pytest.mark.parametrize("name", ["fedit", "ffa-lora", "fedsa-lora", "personal-lora", "user-bias", "biases"])
@pytest.mark.parametrize(
    ("key", "value", "only"),
    [
        ("wide", True, "False"),
        ("gate", True, "False"),
        ("personal_embedding", 1, "False"),
        ("groups", ["kind"], "[]"),
        ("groups", "kind", "[]"),
        ("groups", None, "[]"),
    ],
)
def test_parts_of_fedpa_are_refused(name: str, key: str, value: Any, only: str) -> None:
    with pytest.raises(ConfigError) as caught:
        find_method(name).configured("default", {key: value})
    assert str(caught.value) == (
        f"method {name}: setting {key!r}: expected {only}, found {value!r}; only fedpa and local-only have this part"
    )


def test_every_mistake_in_the_settings_is_named() -> None:
    with pytest.raises(ConfigError, match=r"'lr': .* greater than 0, found 0; setting 'wide': expected False, found 2"):
        find_method("fedit").configured("default", {"wide": 2, "lr": 0})
    assert find_method("fedit").configured("default", {"wide": False, "groups": []}).settings.model_dump()["rank"] == 4


@pytest.mark.parametrize("name", ["fedit", "ffa-lora", "fedsa-lora", "personal-lora", "user-bias", "head-only"])
def test_inputs_have_item_ids_where_items_have_biases(name: str) -> None:
    assert find_method(name).configured("default", {}).inputs == "features, counters"
    assert find_method(name).configured("default", {"item_bias": True}).inputs == "features, counters, item ids"
    assert find_method("biases").configured("default", {}).inputs == "features, counters, item ids"


def test_fedpas_wide_term_item_biases_and_prior(tmp_path: Path) -> None:
    """The whole of the default: ``(v + sum_j v_j + v_u) . e_i + c_i + b_u`` above the adapted foundation.

    The mean change of c_i is over those who touched i and as many others as the prior says.
    """
    decay, prior = 6.0, 2.0
    rates = {"wide_rate": 3.0, "item_rate": 2.0, "personal_decay": decay, "table_prior": prior}
    method = find_method("fedpa").configured("default", SMALL | rates)
    engine = toy_engine(tmp_path, data(), cast(FederatedMethod, method))
    wide = {"wide.user": "personal", "wide.all": "shared"}
    wide |= {f"wide.group.{key}.v": f"group({key})" for key in ("kind", "size")}
    loop = _Default(engine, wide)
    assert {p.name for p in engine.model.layout.parameters()} == loop.kind.keys() - {"item_bias"}
    for number in (1, 2, 3):
        loop.round_with(decay, prior)
        engine.round(number)
        np.testing.assert_allclose(engine.scores(), loop.scores(), **EXACT)
    torch.testing.assert_close(engine.server.named()["item_bias"][:, 0], loop.server["item_bias"], **EXACT)
    assert loop.server["item_bias"].any()


class _Default(PlainLoop):
    """The plain loop with the parts that the default adds."""

    def __init__(self, engine: ToyEngine, wide: dict[str, str]) -> None:
        added: dict[str, set[str]] = {"personal": {"user_bias"}}
        for name, scope in wide.items():
            added.setdefault(scope, set()).add(name)
        super().__init__(engine, {scope: names | added.get(scope, set()) for scope, names in SCOPES["fedpa"].items()})
        self.kind["item_bias"] = "shared"
        self.server["item_bias"] = torch.zeros(self.data.n_items, dtype=torch.float64)

    def logit(self, w: dict[str, Tensor], row: int) -> Tensor:
        item = int(self.data.item[row])
        taste = sum((w[name] for name in w if name.startswith("wide.")), torch.zeros(1, dtype=torch.float64))
        return (
            super().logit(w, row)
            + (taste[0] * self.embed("item", self.data.item_codes[item])).sum()
            + w["item_bias"][item]
        )

    def round_with(self, decay: float, prior: float) -> None:
        starts = getattr(self, "starts", None) or [dict(device) for device in self.devices]
        self.starts: list[dict[str, Tensor]] = starts
        changes: dict[Any, list[Tensor]] = {}
        touched = torch.zeros(self.data.n_items, dtype=torch.float64)
        for user in range(USERS):
            before = self.downloaded(user)
            w = {name: value.clone().requires_grad_() for name, value in before.items()}
            rows = np.flatnonzero((self.data.user == user) & (self.data.part == Part.TRAIN))
            touched[np.unique(self.data.item[rows]).astype(np.int64)] += 1
            labels = torch.from_numpy(self.data.label[rows]).double()
            for _ in range(2):
                logits = torch.stack([self.logit(w, int(row)) for row in rows])
                found = torch.autograd.grad(binary_cross_entropy_with_logits(logits, labels), list(w.values()))
                for (name, value), gradient in zip(w.items(), found, strict=True):
                    rate = LR * (3.0 if name.startswith("wide.") else 2.0 if name == "item_bias" else 1.0)
                    moved = value.detach() - rate * gradient
                    if self.kind[name] == "personal":
                        moved = starts[user][name] + (moved - starts[user][name]) / (1 + rate * decay / len(rows))
                    w[name] = moved.requires_grad_()
            for name, value in w.items():
                if self.kind[name] == "personal":
                    self.devices[user][name] = value.detach()
                else:
                    key: Any = name if self.kind[name] == "shared" else (name, self.value(name, user))
                    changes.setdefault(key, []).append(value.detach() - before[name])
        for key, each in changes.items():
            table: dict[Any, Tensor] = self.server if isinstance(key, str) else self.groups
            total = torch.stack(each).sum(0)
            table[key] = table[key] + total / ((touched + prior) if key == "item_bias" else len(each))
