"""What every federated method does, whatever it is: one suite over all of them."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import safetensors.numpy
import torch

from arrays import SET, Array, ArrayDataset, ToyEngine, toy, toy_engine
from fedpa.adaptation import adapt
from fedpa.data.dataset import COLD, OPEN, Part
from fedpa.evaluation.metrics import auc, log_loss
from fedpa.federation.parameters import PERSONAL
from fedpa.federation.server import Upload
from fedpa.federation.shard import Shard
from fedpa.methods import FederatedMethod, FedPA, find_method, method_names
from fedpa.recommend import Recommendation, catalogue_batch
from fedpa.run import load_run
from prepared import Small, small

ADAPTER = {"rank": 2, "gate_hidden": (3, 2)}
WHOLE = {"embedding": 4, "hidden": (8, 4)}
ITEMS = {"width": 4, "optimizer": "adam", "lr": 0.01, "item_rate": 1.0}

SHAPES: Mapping[str, Mapping[str, Any]] = {
    "fedpa": ADAPTER,
    "local-only": ADAPTER,
    "fedit": ADAPTER,
    "ffa-lora": ADAPTER,
    "fedsa-lora": ADAPTER,
    "personal-lora": ADAPTER,
    "head-only": ADAPTER,
    "user-bias": ADAPTER,
    "biases": ADAPTER,
    "fedavg": WHOLE,
    "fedprox": WHOLE,
    "fedrep": WHOLE,
    "ditto": WHOLE,
    "fedmf": ITEMS,
    "fedrecon": {**ITEMS, "reconstruction_rate": 1.0, "weighting": "users"},
    "pfedrec": ITEMS,
    "fedrap": ITEMS,
    "fedncf": {**ITEMS, "hidden": (6, 4)},
    "gpfedrec": {**ITEMS, "hidden": (6, 4), "neighbours": 3},
}
"""Small sizes, and rates for so few users; a method that is not here is tried with its defaults."""

WIDER = {"embedding": 8, "hidden": (16, 8)}

# These adapters alone, without the prior that the presets put on them: it would outweigh two dozen rows.
BARE = {"optimizer": "adam", "alpha": 1.0, "personal_decay": 0.0}

LEARNS: Mapping[str, tuple[Mapping[str, Any], float]] = {
    "fedavg": (WIDER, 0.95),
    "fedprox": (WIDER, 0.95),
    "fedrep": (WIDER, 0.95),
    "ditto": ({**WIDER, "lr": 0.03}, 0.95),
    "gpfedrec": ({"lr": 0.03}, 0.95),
    "fedpa": ({"personal_decay": 1.0}, 0.9),
    "fedpa+no-prior": ({}, 0.9),
    "local-only": ({"personal_decay": 1.0}, 0.95),
    "fedsa-lora": (BARE, 0.95),
    "personal-lora": (BARE, 0.95),
    # The toy foundation is untrained and narrow: what adds little to it cannot say everything.
    "fedit": (BARE, 0.75),
    "ffa-lora": (BARE, 0.75),
    "head-only": (BARE, 0.7),
    "user-bias": ({}, 0.65),
    # A sum of a user's and an item's term can order 29 of 36 pairs of `TASTE`, ties counted as halves.
    "biases": ({}, 0.7),
}
"""Settings beside `QUICKLY`, and AUC on held-out rows after `ROUNDS` rounds; for others none and 0.95.

What stands for a method stands for its presets that are not here.
"""

QUICKLY = {"lr": 0.1, "epochs": 4}
ROUNDS = 15
PRESETS = ("default", "foundation", *FedPA.follows)


def specs() -> list[str]:
    """Every federated method, also above or started at the foundation, and FedPA's ablations."""
    found = []
    for name in method_names():
        method = find_method(name)
        if issubclass(method, FederatedMethod):
            found += [name if p == "default" else f"{name}+{p}" for p in PRESETS if p in method.presets]
    return found


SPECS = specs()
every = pytest.mark.parametrize("spec", SPECS)
every_method = pytest.mark.parametrize(
    "spec", [pytest.param(spec, marks=pytest.mark.slow if "+" in spec else ()) for spec in SPECS]
)


def configured(spec: str, **values: Any) -> FederatedMethod:
    name, _, preset = spec.partition("+")
    return cast(FederatedMethod, find_method(name).configured(preset or "default", {**SHAPES.get(name, {}), **values}))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# A click is known from the class of the user (rows) and of the item (columns).
TASTE = np.array([[1, 1, 1, 0], [0, 0, 0, 1], [1, 1, 0, 0]])


def answerable() -> ArrayDataset:
    data = toy(24, np.full(24, 40), items=12)
    data._rows["label"][:] = TASTE[data.user_codes[data.user, 0], data.item_codes[data.item, 0]]
    return data


@every
def test_a_known_answer_is_learnt(tmp_path: Path, spec: str) -> None:
    values, bound = LEARNS.get(spec) or LEARNS.get(spec.partition("+")[0], ({}, 0.95))
    engine = toy_engine(tmp_path, answerable(), configured(spec, **{**QUICKLY, **values}))
    rows = engine.shards[0].rows
    labels, held_out = rows.labels.numpy().astype(np.int8), rows.part != Part.TRAIN

    def loss() -> float:
        found = log_loss(labels[~held_out], engine.shards[0].scores(engine.server.state)[~held_out])
        assert found is not None
        return found

    before = loss()
    for number in range(1, ROUNDS + 1):
        engine.round(number)
    assert loss() < 0.92 * before
    found = auc(labels[held_out], engine.shards[0].scores(engine.server.state)[held_out])
    assert found is not None
    assert found > bound


def sentinels(engine: ToyEngine) -> list[Array]:
    """Write values that occur nowhere else into everything personal that the devices keep, and return them."""
    shard, layout = engine.shards[0], engine.model.layout
    users = np.arange(len(shard.rows.users))
    drawn = np.random.default_rng(0)
    found = [drawn.uniform(0.05, 0.15, (len(users), layout.personal_size)).astype(np.float32)]
    shard.store.begin(users, shard.touched, SET)
    row = shard.store.read(users)
    row[:, : layout.personal_size] = found[0]
    shard.store.write(users, row)
    for name, store in shard.store.tables.items():
        touched = shard.touched[name]
        kept = drawn.uniform(0.05, 0.15, (touched.pairs[-1], store.size)).astype(np.float32)
        if layout.scopes[name] != PERSONAL:  # a copy of what is uploaded is no secret
            kept[:] = 0
        else:
            found.append(kept)
        store.write(np.arange(len(kept)), kept)
    shard.store.commit()
    return found


def secret(engine: ToyEngine) -> list[Array]:
    """What the devices keep and nobody may see, as it is now."""
    shard, layout = engine.shards[0], engine.model.layout
    found = [shard.store.read(np.arange(len(shard.rows.users)))[:, : layout.personal_size]]
    for name, store in shard.store.tables.items():
        if layout.scopes[name] == PERSONAL:
            found.append(store.read(np.arange(shard.touched[name].pairs[-1])))
    return found


def sent(upload: Upload) -> bytes:
    """Everything of an upload, as bytes."""
    seen = [(r.table, r.users, r.ids, r.values.numpy()) for r in upload.seen]
    facts = (upload.participants, upload.rows, upload.loss, upload.weights_up, upload.bound)
    return pickle.dumps(([t.numpy() for t in (*upload.sums, *upload.weights)], facts, seen))


@every
def test_nothing_personal_or_frozen_is_in_the_upload(tmp_path: Path, spec: str) -> None:
    data = toy(5, np.full(5, 10))
    method = configured(spec, personal_bias=True, optimizer="sgd", lr=0.7)
    engine = toy_engine(tmp_path, data, method)
    layout, shard = engine.model.layout, engine.shards[0]
    planted = sentinels(engine)
    upload = shard.round(engine.server.state, 1)
    kept = secret(engine)
    moved = any((a != b).any() for a, b in zip(planted, kept, strict=True))
    assert moved or method.forgets_personal
    users = torch.arange(5)
    parameters = [*layout.parameters(), *(table.parameter for table in layout.tables)]
    assert all(layout.scopes[p.name].kind == "personal" for p in parameters if callable(p.start))
    hidden = [p.start(users).numpy() for p in parameters if callable(p.start)]
    hidden += [p.start.numpy() for p in parameters if not callable(p.start) and layout.scopes[p.name].kind == "frozen"]
    hidden += [value.numpy() for value in engine.foundation.model.state_dict().values() if value.is_floating_point()]
    changes = [after - before for before, after in zip(planted, kept, strict=True)]
    if method.name == "fedrap":  # both terms of a sum have one gradient: the shared change is the personal one
        changes = changes[:1]
    if spec == "fedpa+no-prior":  # so have the parts of the wide term, which nothing but the prior tells apart
        assert layout.personal is not None
        layout.personal.split(torch.from_numpy(changes[0]))["wide.user"].zero_()
    private = np.concatenate([x.ravel() for x in (*planted, *kept, *changes, *hidden)])
    secrets = private[np.abs(private) > 1e-6]
    assert len(secrets) > 100
    content = sent(upload)
    for form in (secrets, secrets.astype(np.float64), np.rint(secrets.astype(np.float64) * 2.0**36).astype(np.int64)):
        assert not [value for value in form if value.tobytes() in content]
    # The same search does find what is sent.
    for value in np.concatenate([t.numpy().ravel() for t in upload.sums] or [np.zeros(0, np.int64)]):
        assert value.tobytes() in content


@every
def test_an_upload_says_by_its_size_nothing_of_the_rows(tmp_path: Path, spec: str) -> None:
    sizes = []
    for number, items in enumerate(([3], [7], range(10), range(10, 20))):
        data = toy(1, np.full(1, 10), groups=("kind",))
        data.user_codes[:], data.groups["kind"][:] = 1, 1
        data._rows["item"][:] = np.resize(np.array(items), 10)
        data._rows["label"][:] = np.arange(10) % 2
        engine = toy_engine(tmp_path / str(number), data, configured(spec))
        upload = engine.shards[0].round(engine.server.state, 1)
        sizes.append(([t.shape for t in (*upload.sums, *upload.weights)], upload.weights_up))
    assert sizes[0] == sizes[1] == sizes[2] == sizes[3]
    scopes = engine.model.layout.sizes_by_scope()
    counts = 0
    if engine.method.settings.table_mean == "touched":  # of every row of a table, whether it was touched
        counts = sum(vector.table.rows for vector in engine.model.layout.uploaded if vector.table is not None)
    assert sizes[0][1] == sum(scopes.get(scope, 0) for scope in ("shared", "shared, kept", "group(kind)")) + counts


USERS = 16
LOCAL: Mapping[str, Any] = {"participation": 0.5, "batch_size": 4, "epochs": 2}
EVERYTHING: Mapping[str, Any] = {
    "keep_optimizer": True,
    "personal_bias": True,
    "proximal": 0.1,
    "personal_decay": 0.1,
    "weighting": "rows",
    "table_mean": "touched",
    "server_optimizer": "adam",
    "server_lr": 0.1,
}


def uneven() -> ArrayDataset:
    """Users of 1 to 24 rows; the last one has none, and that before it none to train on."""
    counts = np.resize([1, 5, 11, 13, 24], USERS)
    counts[-1] = 0
    data = toy(USERS, counts, context=True, features="causal")
    data._rows["part"][data.user == USERS - 2] = Part.TEST
    return data


def result(engine: ToyEngine, rounds: int = 2) -> dict[str, Any]:
    """What a run leaves behind, as bytes, and what each round sent."""
    found: dict[str, Any] = {}
    for number in range(1, rounds + 1):
        upload = engine.round(number)
        found[f"sums {number}"] = [t.numpy().tobytes() for t in (*upload.sums, *upload.weights)]
        found[f"facts {number}"] = (upload.participants, upload.rows, upload.loss, upload.weights_up)
    found["state"] = [table.numpy().tobytes() for table in engine.server.state]
    found["stored"] = [{name: value.tobytes() for name, value in user.items()} for user in engine.stored()]
    found["scores"] = engine.scores().tobytes()
    return found


def differing(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """What is not the same, by name: the bytes themselves tell nobody anything."""
    return [name for name in expected if found[name] != expected[name]]


TWO = [np.arange(n, USERS, 2) for n in range(2)]
SEVEN = [np.arange(n, USERS, 7) for n in range(7)]


@every
def test_seeds_decide_and_divisions_do_not(tmp_path: Path, spec: str) -> None:
    data, method = uneven(), configured(spec, **LOCAL)
    whole = result(toy_engine(tmp_path / "whole", data, method))
    for name, division in {"two": {"divided": TWO}, "small chunks": {"rows_per_chunk": 10}}.items():
        found = result(toy_engine(tmp_path / name, data, method, **cast(dict[str, Any], division)))
        assert differing(found, whole) == [], name
    other = result(toy_engine(tmp_path / "other", data, method, seed=1))
    assert {"stored", "scores"} & {*differing(other, whole)}


@every_method
def test_divisions_change_nothing_with_every_setting(tmp_path: Path, spec: str) -> None:
    data, method = uneven(), configured(spec, **LOCAL, **EVERYTHING)
    whole = result(toy_engine(tmp_path / "whole", data, method))
    found = result(toy_engine(tmp_path / "seven", data, method, divided=SEVEN, users_per_chunk=2))
    assert differing(found, whole) == []


@every
def test_rounds_of_one_user_and_of_nobody(tmp_path: Path, spec: str) -> None:
    method = configured(spec, participation=0.12, server_optimizer="momentum", lr=0.05)
    engine = toy_engine(tmp_path, toy(6, np.full(6, 10)), method)
    seen = set()
    for number in range(1, 40):
        before = result(engine, 0)
        taken = engine.round(number).participants
        seen.add(taken)
        moved = differing(result(engine, 0), before)
        assert (moved == []) == (taken == 0), (number, taken)
        if {0, 1} <= seen:
            return
    raise AssertionError(f"rounds of {seen} users only")


@every
def test_a_federation_of_one_user(tmp_path: Path, spec: str) -> None:
    engine = toy_engine(tmp_path, toy(1, np.array([10])), configured(spec))
    before = result(engine, 0)
    assert engine.round(1).participants == 1
    assert "scores" in differing(result(engine, 0), before)
    assert np.isfinite(engine.scores()).all()


@every
def test_the_catalogue_is_scored_as_rows_are(tmp_path: Path, spec: str) -> None:
    """Whole tables of one user give what the touched rows in the user's memory give."""
    data = toy(6, np.full(6, 10), context=True)
    engine = toy_engine(tmp_path, data, configured(spec, lr=0.05))
    for number in (1, 2):
        engine.round(number)
    shard, state, users = engine.shards[0], engine.server.state, np.arange(6)
    blocks, tables = shard.assembly.catalogue(shard.weights_of(users, state), users, shard.rows.users, state)
    items, context = shard.rows.items.view(6, 10), shard.rows.context.view(6, 10, -1)
    with torch.inference_mode():
        logits, _ = engine.model.forward(blocks, catalogue_batch(tables, shard.rows.users, items, context))
    np.testing.assert_allclose(logits.sigmoid().numpy().ravel(), shard.scores(state), rtol=0, atol=1e-6)


# What a preset may have of these settings is taken away, so that each can be seen alone.
NEUTRAL: Mapping[str, Any] = {
    "optimizer": "adam",
    "proximal": 0.0,
    "personal_decay": 0.0,
    "weighting": "users",
    "table_mean": "participants",
    "table_prior": 0.0,
}


def effective(engine: ToyEngine) -> dict[str, tuple[dict[str, Any], bool]]:
    """Settings that every method takes, and whether they can change anything of this one."""
    kinds = {scope.kind for scope in engine.model.layout.scopes.values()}
    shared, personal = bool({"shared", "group"} & kinds), "personal" in kinds
    table = any(vector.table is not None for vector in engine.model.layout.uploaded)
    return {
        "keep_optimizer": ({"keep_optimizer": True}, True),
        "personal_bias": ({"personal_bias": True}, engine.method.name != "user-bias"),
        "proximal": ({"proximal": 0.5}, shared),
        "personal_decay": ({"personal_decay": 0.5}, personal),
        # GPFedRec's graph takes users alike; it says so.
        "weighting": ({"weighting": "rows"}, shared and engine.method.name != "gpfedrec"),
        "momentum": ({"server_optimizer": "momentum"}, shared),
        "adam": ({"server_optimizer": "adam"}, shared),
        "server_lr": ({"server_lr": 0.5}, shared),
        "table_mean": ({"table_mean": "touched"}, table),
        "table_prior": ({"table_prior": 3.0}, table and engine.method.name != "gpfedrec"),
    }


@every
def test_settings_offered_to_every_method_do_something(tmp_path: Path, spec: str) -> None:
    data = toy(8, np.resize([5, 15], 8))
    base = {**NEUTRAL, "personal_bias": spec == "user-bias", "lr": 0.05, "epochs": 2}
    plain = toy_engine(tmp_path / "plain", data, configured(spec, **base))
    expected = result(plain)
    for name, (values, does) in effective(plain).items():
        found = result(toy_engine(tmp_path / name, data, configured(spec, **{**base, **values})))
        assert bool({"state", "scores"} & {*differing(found, expected)}) == does, name


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return small(tmp_path_factory)


def kept_files(folder: Path) -> dict[str, Array]:
    """Everything in a run folder that devices keep, by file."""
    return {
        path.name: safetensors.numpy.load_file(path)["personal"]
        for path in sorted(folder.glob("personal*.safetensors"))
    }


@every_method
def test_a_run_is_saved_loaded_and_forgets(
    made: Small, tmp_path: Path, spec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The last round is the best, whatever it is like: the first one has nothing to forget.
    better = itertools.count()
    monkeypatch.setattr("fedpa.federation.coordinator.Coordinator._selected", lambda *_: float(next(better)))
    name, _, preset = spec.partition("+")
    values = {**SHAPES.get(name, {}), "rounds": 2, "patience": 0, "lr": 0.01, "batch_size": 64, "keep_optimizer": True}
    dataset = made.dataset
    run = adapt(
        made.foundation,
        dataset,
        out=tmp_path / "run",
        foundation_path=made.foundation_path,
        method=name,
        preset=preset or "default",
        **values,
    )
    assert run.summary["best_round"] == 2
    loaded = load_run(run.path)
    assert np.isfinite(run.scores).all()
    assert (loaded.scores == run.scores).all()
    ids = dataset.user_ids
    private = [int(ids[int(n)]) for n in run.rows.users[run.rows.train > 0][:2]]
    strangers = [int(ids[int(np.flatnonzero(dataset.side == side)[0])]) for side in (OPEN, COLD)]
    for user in (*private, *strangers):
        found = loaded.recommend(user, 5)
        assert isinstance(found, Recommendation)
        assert found == run.recommend(user, 5)
        assert len({*found.items}) == 5
        assert all(0 <= score <= 1 for score in found.scores)
        absent = [note for note in found.notes if "never took part" in note]
        assert not (absent and user in private)
        if found.gates:
            adapters = ["user"] if run.config["settings"]["user_lora"] else []
            keys = dataset.group_sizes if run.config["settings"]["groups"] is None else ()
            assert list(found.gates) == ["foundation", *adapters, *keys]
        number = dataset.user_index(user)
        assert not {*found.items} & {*dataset.item_ids.gather(dataset.item[dataset.user == number]).to_list()}
    before = kept_files(run.path)
    trained = int(np.flatnonzero(run.rows.train > 0)[0])
    touched = Shard.touched_rows(loaded.model, loaded.rows)
    own = {"personal.safetensors": np.array([trained])}
    own |= {f"personal-{table}.safetensors": rows.stored(np.array([trained])) for table, rows in touched.items()}
    erased = loaded.forget(int(ids[int(run.rows.users[trained])]))["erased"]
    assert erased > 0 or name == "fedrecon"
    assert erased == sum(np.count_nonzero(values[own[file]]) for file, values in before.items())
    after = kept_files(run.path)
    assert after.keys() == before.keys()
    for file, values_before in before.items():
        values_before[own[file]] = 0
        assert (after[file] == values_before).all(), file
    again = load_run(run.path).scores
    assert (again[run.rows.user != trained] == run.scores[run.rows.user != trained]).all()
