"""How users are divided into shards, chunks and threads changes no byte; what is personal leaves no shard."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from arrays import CPU, SET, Array, ArrayDataset, ToyEngine, toy, toy_engine
from fedpa.data.dataset import Part
from fedpa.errors import FedpaError
from fedpa.federation.parameters import PERSONAL, SHARED, Block, Layout, Parameter, Table, group
from fedpa.federation.rows import ShardRows
from fedpa.federation.server import Server, Upload
from fedpa.federation.shard import Shard
from fedpa.methods.fedpa import FedPA
from fedpa.models.adapted import AdaptedMLP, AdapterSettings
from fedpa.models.bias import WithPersonalBias
from fedpa.models.products import gather_rows
from fedpa.settings import Settings

USERS = 61
SETTINGS: dict[str, Any] = {
    "rank": 2,
    "gate_hidden": (3, 2),
    "batch_size": 16,
    "epochs": 2,
    "participation": 0.6,
    "weighting": "rows",
}


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def uneven() -> ArrayDataset:
    """Users of 1 to 90 rows, some of a group value that is unknown."""
    counts = np.random.default_rng(0).integers(1, 40, USERS)
    counts[:4] = [1, 90, 90, 2]
    return toy(USERS, counts, context=True, features="causal")


def result(engine: ToyEngine, rounds: int = 2) -> dict[str, Any]:
    """Everything that a division could change, as bytes."""
    uploads = [engine.round(number) for number in range(rounds)]
    found: dict[str, Any] = {
        f"upload {n}": (
            [t.numpy().tobytes() for t in (*upload.sums, *upload.weights)],
            (upload.participants, upload.rows, upload.loss, upload.weights_up),
        )
        for n, upload in enumerate(uploads)
    }
    found["server"] = [table.numpy().tobytes() for table in engine.server.state]
    found["personal"] = engine.personal().tobytes()
    found["scores"] = engine.scores().tobytes()
    return found


def differing(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """What is not the same, by name: the bytes themselves tell nobody anything."""
    return [name for name in expected if found[name] != expected[name]]


def divided(shards: int) -> list[Array]:
    """Users dealt to shards in turn; users 0 and 1 sit alone, and the last shard is empty, if there are seven."""
    if shards == 1:
        return [np.arange(USERS)]
    if shards == 7:
        dealt = [np.arange(2 + n, USERS, 4) for n in range(4)]
        return [np.array([0]), np.array([1]), *dealt, np.zeros(0, np.int64)]
    return [np.arange(n, USERS, shards) for n in range(shards)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    found = result(toy_engine(tmp_path_factory.mktemp("whole"), uneven(), FedPA(AdapterSettings(**SETTINGS))))
    torch.set_num_threads(before)
    return found


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("shards", [1, 2, 7])
def test_shards_and_threads_change_no_byte(tmp_path: Path, whole: dict[str, Any], shards: int, number: int) -> None:
    torch.set_num_threads(number)
    method = FedPA(AdapterSettings(**SETTINGS))
    assert differing(result(toy_engine(tmp_path, uneven(), method, divided=divided(shards))), whole) == []


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize(
    "limits",
    [
        {"users_per_chunk": 1},
        {"users_per_chunk": 2},
        {"users_per_chunk": 5},
        {"users_per_chunk": 128},
        {"rows_per_chunk": 1},
        {"rows_per_chunk": 40},
        {"users_per_chunk": 3, "rows_per_chunk": 100_000},
    ],
)
def test_chunks_change_no_byte(tmp_path: Path, whole: dict[str, Any], limits: dict[str, Any], number: int) -> None:
    torch.set_num_threads(number)
    engine = toy_engine(tmp_path, uneven(), FedPA(AdapterSettings(**SETTINGS)), **limits)
    assert differing(result(engine), whole) == []


def test_a_wide_model_is_the_same_in_any_company(tmp_path: Path) -> None:
    """Widths as published, whose products take other kernels than those of a toy."""
    data = toy(40, np.random.default_rng(1).integers(1, 60, 40), features="causal")
    found = []
    for number, users_per_chunk in enumerate([128, 1, 3]):
        method = FedPA(AdapterSettings(batch_size=32))
        engine = toy_engine(tmp_path / str(number), data, method, users_per_chunk=users_per_chunk)
        found.append(result(engine))
    assert differing(found[1], found[0]) == differing(found[2], found[0]) == []


def test_a_shard_of_nobody_and_of_users_without_rows(tmp_path: Path) -> None:
    data = toy(3, np.array([6, 6, 6]))
    data._rows["part"][data.user == 1] = Part.TEST
    engine = toy_engine(tmp_path, data, divided=[np.zeros(0, np.int64), np.array([1]), np.array([0, 2])])
    empty, idle, _ = (shard.round(engine.server.state, 0) for shard in engine.shards)
    for upload in (empty, idle):
        assert (upload.participants, upload.rows, upload.loss, upload.weights_up) == (0, 0, 0, 0)
        assert not any(t.any() for t in (*upload.sums, *upload.weights))
    assert engine.shards[0].scores(engine.server.state).shape == (0,)
    assert np.isfinite(engine.shards[1].scores(engine.server.state)).all()


def test_users_who_sit_out_keep_their_values(tmp_path: Path) -> None:
    engine = toy_engine(
        tmp_path, toy(30, np.full(30, 8)), FedPA(AdapterSettings(**(SETTINGS | {"participation": 0.3})))
    )
    before = engine.personal()
    taken = np.zeros(30, bool)
    for number in range(4):
        upload = engine.round(number)
        after = engine.personal()
        moved = (before != after).any(1)
        assert 0 < moved.sum() == upload.participants < 30
        taken |= moved
        before = after
    assert taken.sum() > upload.participants
    assert not before[~taken].any()


def test_training_diverged_is_an_error(tmp_path: Path) -> None:
    method = FedPA(AdapterSettings(rank=2, gate_hidden=(3, 2), optimizer="sgd", lr=1e12))
    engine = toy_engine(tmp_path, toy(12, np.full(12, 10)), method)
    with pytest.raises(FedpaError, match="training diverged") as caught:
        for number in range(5):
            engine.round(number)
    assert caught.value.fix is not None


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("lr", [1e38, 1e300])
def test_infinite_and_undefined_changes_are_errors(tmp_path: Path, dtype: str, lr: float) -> None:
    method = FedPA(AdapterSettings(rank=2, gate_hidden=(3, 2), optimizer="sgd", lr=lr, dtype=dtype, epochs=3))
    engine = toy_engine(tmp_path, toy(12, np.full(12, 10)), method)
    with pytest.raises(FedpaError, match="training diverged"):
        engine.round(0)


def test_a_calm_round_of_many_rows_is_no_divergence(tmp_path: Path) -> None:
    """Changes of 0.1, weighted by rows: whether the sums fit must not depend on how many users share a chunk."""
    data = toy(120, np.full(120, 100))
    values = {"rank": 1, "gate_hidden": (2, 2), "lr": 0.1, "dtype": "float64", "weighting": "rows"}
    states = []
    for number, users_per_chunk in enumerate([10, 512]):
        engine = toy_engine(
            tmp_path / str(number), data, FedPA(AdapterSettings(**values)), users_per_chunk=users_per_chunk
        )
        engine.round(0)
        states.append([table.numpy().tobytes() for table in engine.server.state])
    assert states[0] == states[1]


class _Line:
    """A logit of one shared, one group and one personal weight, whose gradients are known by hand."""

    def __init__(self) -> None:
        blocks = [
            Block("s", (Parameter("s", (1,), torch.zeros(1)),)),
            Block("p", (Parameter("p", (2,), lambda users: users[:, None].double() * torch.tensor([[0.0, 1.0]])),)),
            Block("g", (Parameter("g", (1,), torch.zeros(1)),)),
        ]
        rule = {"s": SHARED, "p": PERSONAL, "g": group("kind")}
        self.layout = Layout(blocks, rule.__getitem__, {"kind": 3})

    def forward(self, blocks: Any, batch: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
        logits = blocks["s"] + blocks["g"] + blocks["p"][:, :1] + 0 * blocks["p"][:, 1:]
        return logits.expand(-1, batch.items.shape[1]), []


@pytest.mark.parametrize("weighting", ["users", "rows"])
def test_one_step_by_hand(tmp_path: Path, weighting: str) -> None:
    """At logit 0 a user's gradient is 1/2 minus its click rate; gradient descent moves lr times as far, back."""
    labels = [[1], [1, 1, 0, 0], [0, 0], [1, 0, 0, 0]]
    kinds = [0, 0, 2, 2]
    data = toy(4, np.array([len(found) for found in labels]))
    data._rows["part"][:] = Part.TRAIN
    data._rows["label"][:] = np.concatenate(labels)
    data.groups["kind"][:] = kinds
    settings = Settings.checked(
        {"optimizer": "sgd", "lr": 2.0, "weighting": weighting, "dtype": "float64"}, "settings of a test"
    )
    model = _Line()
    rows = toy_engine(tmp_path / "rows", data, FedPA(AdapterSettings(rank=1, gate_hidden=(1, 1), dtype="float64")))
    store = Shard.new_store(model, rows.shards[0].rows, settings, tmp_path)
    shard = Shard(model, rows.shards[0].rows, settings, store, seed=0)
    server = Server(model.layout, torch.float64)
    upload = shard.round(server.state, 0)
    server.step(upload)
    change = np.array([1.0, 0.0, -1.0, -0.5])  # 2 (rate - 1/2)
    weight = np.array([1.0, 4.0, 2.0, 4.0]) if weighting == "rows" else np.ones(4)
    named = server.named()
    assert named["s"].item() == pytest.approx(np.average(change, weights=weight), abs=1e-12)
    first, last = (np.average(change[i], weights=weight[i]) for i in (slice(0, 2), slice(2, 4)))
    assert named["g"].flatten().tolist() == pytest.approx([first, 0.0, last], abs=1e-12)
    assert shard.store.read(np.arange(4)).tolist() == [[value, 0.0] for value in change]
    assert (upload.participants, upload.rows, upload.weights_up, upload.weights_down) == (4, 11, 8, 8)
    assert upload.loss * 2.0**-44 == pytest.approx(4 * np.log(2))
    assert upload.weights[0].tolist() == [weight.sum()]


class _Biases:
    """A logit that is a shared bias per item, so that a click at first pushes it by one half, a view by minus that."""

    def __init__(self, items: int = 5) -> None:
        start = torch.zeros(items, 1, dtype=torch.float64)
        table = Table("bias", items, 1, start, lambda items, _: items[..., None])
        self.layout = Layout([], lambda _: SHARED, {}, [table])

    def forward(self, blocks: Any, batch: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
        return gather_rows(blocks["bias"], batch.slots["bias"]).squeeze(-1).squeeze(-1), []


@pytest.mark.parametrize(
    ("values", "expected", "weights"),
    [
        ({"table_mean": "participants"}, [1 / 6, 1 / 24, -1 / 8, 0, 0], [2]),
        ({"table_mean": "touched"}, [1 / 3, 1 / 24, -1 / 4, 0, 0], [1, 2, 1, 0, 0]),
        ({"table_mean": "touched", "table_prior": 3.0}, [1 / 12, 1 / 60, -1 / 16, 0, 0], [1, 2, 1, 0, 0]),
        ({"table_mean": "touched", "weighting": "rows"}, [1 / 3, 0, -1 / 4, 0, 0], [3, 5, 2, 0, 0]),
        (
            {"table_mean": "touched", "weighting": "rows", "table_prior": 1.0},
            [(3 / 3) / 4, 0, (-2 / 4) / 3, 0, 0],
            [3, 5, 2, 0, 0],
        ),
    ],
)
@pytest.mark.parametrize("apart", [False, True])
def test_rows_of_a_table_move_by_the_mean_of_those_who_touched_them(
    tmp_path: Path, values: dict[str, Any], expected: list[float], weights: list[int], apart: bool
) -> None:
    """User 0 moves items 0 and 1 by 1/3 and -1/6, user 1 items 1 and 2 by 1/4 and -1/4; item 3 is not trained."""
    data = toy(2, np.array([4, 2]), items=5)
    data._rows["item"][:] = [0, 0, 1, 3, 1, 2]
    data._rows["label"][:] = [1, 1, 0, 1, 1, 0]
    data._rows["part"][:] = [Part.TRAIN, Part.TRAIN, Part.TRAIN, Part.TEST, Part.TRAIN, Part.TRAIN]
    settings = Settings.checked({"optimizer": "sgd", "lr": 1.0, "dtype": "float64"} | values, "settings of a test")
    model = _Biases()
    server = Server(model.layout, torch.float64, settings)
    upload = Upload.empty(model.layout, settings)
    for number, users in enumerate([np.array([0]), np.array([1])] if apart else [np.array([0, 1])]):
        rows = ShardRows.of(data, users, dtype=torch.float64, device=CPU)
        store = Shard.new_store(model, rows, settings, tmp_path / str(number))
        upload += Shard(model, rows, settings, store, seed=0).round(server.state, 1)
    server.step(upload)
    assert server.named()["bias"].flatten().tolist() == pytest.approx(expected, abs=1e-12)
    assert upload.weights[0].tolist() == weights
    counts = 2 * 5 if values["table_mean"] == "touched" else 0
    assert (upload.weights_up, upload.weights_down) == (2 * 5 + counts, 2 * 5)


@pytest.mark.parametrize(("table_mean", "up"), [("participants", 3), ("touched", 2 * 3)])
def test_counts_of_a_table_of_one_row_go_up_only(tmp_path: Path, table_mean: str, up: int) -> None:
    data = toy(3, np.array([2, 4, 3]), items=1)
    data._rows["part"][:] = Part.TRAIN
    settings = Settings.checked({"table_mean": table_mean}, "settings of a test")
    model = _Biases(items=1)
    rows = ShardRows.of(data, None, dtype=torch.float32, device=CPU)
    store = Shard.new_store(model, rows, settings, tmp_path)
    upload = Shard(model, rows, settings, store, seed=0).round(Server(model.layout, torch.float32, settings).state, 1)
    assert (upload.participants, upload.weights_up, upload.weights_down) == (3, up, 3)


def test_nothing_personal_or_frozen_is_in_the_upload(tmp_path: Path) -> None:
    data = toy(5, np.full(5, 10))
    values = {"rank": 2, "gate_hidden": (3, 2), "personal_bias": True, "optimizer": "sgd", "lr": 0.7}
    engine = toy_engine(tmp_path, data, FedPA(AdapterSettings(**values)))
    layout, shard = engine.model.layout, engine.shards[0]
    sentinels = (np.arange(5 * layout.personal_size, dtype=np.float32) + 1000.5).reshape(5, -1) * 1e-4
    shard.store.begin(np.arange(5), shard.touched, SET)
    shard.store.write(np.arange(5), sentinels)
    shard.store.commit()
    assert isinstance(engine.model, WithPersonalBias)
    inner = engine.model.model
    assert isinstance(inner, AdaptedMLP)
    frozen = [inner.items, *(value for pair in inner.frozen for value in pair)]
    (starts,) = (p.start(torch.arange(5)) for p in layout.parameters() if callable(p.start))
    upload = shard.round(engine.server.state, 0)
    kept = shard.store.read(np.arange(5))
    assert (kept != sentinels).any()
    uploaded = [p for p in layout.parameters() if layout.scopes[p.name] != PERSONAL]
    sizes = {str(layout.scopes[p.name]): 0 for p in uploaded}
    for parameter in uploaded:
        sizes[str(layout.scopes[parameter.name])] += parameter.size
    values = {"shared": 1, "group(kind)": 3, "group(size)": 2}
    assert [tuple(t.shape) for t in upload.sums] == [(values[scope], size) for scope, size in sizes.items()]
    sent = pickle.dumps([t.numpy() for t in (*upload.sums, *upload.weights)]) + pickle.dumps(
        (upload.participants, upload.rows, upload.loss, upload.weights_up, upload.bound, upload.seen)
    )
    private = np.concatenate(
        [sentinels.ravel(), kept.ravel(), (kept - sentinels).ravel(), starts.numpy().ravel()]
        + [value.numpy().ravel() for value in frozen]
    )
    secrets = private[np.abs(private) > 1e-6]
    assert len(secrets) > 300
    for form in (secrets, secrets.astype(np.float64), np.rint(secrets.astype(np.float64) * 2.0**36).astype(np.int64)):
        present = [value for value in form if value.tobytes() in sent]
        assert not present


def test_what_an_upload_is_made_of() -> None:
    """An upload has no room for anything but sums, weights, counts and what a scope lets the server see."""
    assert list(Upload.__dataclass_fields__) == [
        "sums",
        "weights",
        "participants",
        "rows",
        "loss",
        "weights_up",
        "weights_down",
        "bound",
        "seen",
    ]
