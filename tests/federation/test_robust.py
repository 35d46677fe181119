"""Robust aggregates by hand and against plain NumPy; to the bit the same in any order and any division."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from arrays import ToyEngine, toy, toy_engine
from fedpa.errors import ConfigError
from fedpa.federation.intake import Intake
from fedpa.federation.order import Report
from fedpa.federation.parameters import SHARED, Block, Layout, Parameter, Scope, Table, group
from fedpa.federation.robust import check_visibility, robust_sums
from fedpa.federation.server import Server
from fedpa.federation.upload import FRACTION_BITS, TableRows, Upload, vector_name
from fedpa.federation.wire import pack_report
from fedpa.methods import FederatedMethod, find_method, method_names
from fedpa.settings import Settings

USERS, ROWS = 23, np.arange(23) % 6 + 4
UNIT = 2.0 ** FRACTION_BITS[torch.float64]
AGGREGATES: list[dict[str, Any]] = [
    {"aggregation": "trimmed_mean", "trim": 0.2},
    {"aggregation": "median"},
    {"aggregation": "norm_bound", "norm_bound": 0.05},
]
Array = npt.NDArray[np.float64]


def method(spec: str = "fedpa", **values: Any) -> FederatedMethod:
    chosen = {"visible": "rows", "dtype": "float64", "personal_bias": True, **values}
    return cast(FederatedMethod, find_method(spec).configured("default", chosen))


def engine(folder: Path, found: FederatedMethod, divided: int = 1, users_per_chunk: int = 128) -> ToyEngine:
    parts = np.array_split(np.arange(USERS), divided)
    return toy_engine(folder, toy(USERS, ROWS), found, divided=parts, users_per_chunk=users_per_chunk)


def hand_layout() -> Layout:
    """A shared weight, one per value of a group of three, and a table of two rows."""
    seen = {"a": Scope("shared", sees="rows"), "g": Scope("group", "city", sees="rows")}
    blocks = [Block(name, (Parameter(name, (1,), torch.zeros(1)),)) for name in ("a", "g")]
    table = Table("t", 2, 1, torch.zeros(2, 1), ids=lambda items, _: items[..., None])
    return Layout(blocks, lambda name: seen.get(name, Scope("shared", sees="rows")), {"city": 3}, [table])


def by_hand(entries: dict[str, list[tuple[int, int, float]]], weights: list[list[int]], **values: Any) -> list[Any]:
    """New state of a server that starts at zero, from entries (user, row, change) by scope."""
    layout = hand_layout()
    names = {vector_name(vector).partition(",")[0]: vector_name(vector) for vector in layout.uploaded}
    assert list(names) == ["shared", "group(city)", "t"]
    settings = Settings.checked({"dtype": "float64", **values}, "here")
    upload = Upload.empty(layout, settings)
    upload.weights = [torch.tensor(one) for one in weights]
    for name, rows in entries.items():
        users, ids, changes = zip(*rows, strict=True)
        piece = torch.tensor(changes, dtype=torch.float64)[:, None]
        upload.seen += (TableRows(names[name], np.array(users), np.array(ids), piece),)
    server = Server(layout, torch.float64, settings)
    server.step(upload)
    return [rows.flatten().tolist() for rows in server.state]


SHARED_CHANGES = [(0, 0, 3.0), (1, 0, -100.0), (2, 0, 1.0), (3, 0, 2.0), (4, 0, 50.0)]
GROUP_CHANGES = [(0, 0, 1.0), (1, 0, 5.0), (2, 2, 7.0), (3, 2, 8.0), (4, 2, -900.0)]
TABLE_CHANGES = [(0, 0, 4.0), (1, 0, -8.0), (2, 0, 6.0), (3, 1, 9.0)]
HAND = {"shared": SHARED_CHANGES, "group(city)": GROUP_CHANGES, "t": TABLE_CHANGES}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        # One of five goes at each end; of a group's two none does, of its three none (0.2 * 3 < 1).
        ({"aggregation": "trimmed_mean", "trim": 0.2}, [[2.0], [3.0, 0.0, -885 / 3], [(4 + 0 + 0) / 3, 0.0]]),
        ({"aggregation": "trimmed_mean", "trim": 0.4}, [[2.0], [3.0, 0.0, 7.0], [0.0, 0.0]]),
        ({"aggregation": "median"}, [[2.0], [3.0, 0.0, 7.0], [0.0, 0.0]]),
        # Of those who touch the row alone, and with a prior as if one more had not moved it.
        ({"aggregation": "median", "table_mean": "touched"}, [[2.0], [3.0, 0.0, 7.0], [4.0, 9.0]]),
        (
            {"aggregation": "trimmed_mean", "trim": 0.4, "table_mean": "touched", "table_prior": 1.0},
            [[2.0], [3.0, 0.0, 7.0], [4.0 * 3 / 4, 9.0 / 2]],
        ),
    ],
)
def test_aggregates_by_hand(values: dict[str, Any], expected: list[list[float]]) -> None:
    of_table = [3, 1] if values.get("table_mean") else [5]
    found = by_hand(HAND, [[5], [2, 0, 3], of_table], **values)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-12)


def test_the_norm_bound_by_hand() -> None:
    """A user's change is as long as all its scopes together; one within the bound stays as it is."""
    entries = {"shared": [(0, 0, 3.0), (1, 0, 0.5)], "group(city)": [(0, 1, 4.0)], "t": [(0, 0, 12.0), (1, 1, 0.5)]}
    weights = [[2], [0, 1, 0], [2]]
    found = by_hand(entries, weights, aggregation="norm_bound", norm_bound=1.3)
    expected = [[(0.3 + 0.5) / 2], [0.0, 0.4, 0.0], [1.2 / 2, 0.5 / 2]]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-12)


def test_a_user_who_moved_nothing_has_no_length_to_bound() -> None:
    assert by_hand({"shared": [(0, 0, 0.0)]}, [[1], [0, 0, 0], [1]], aggregation="norm_bound")[0] == [0.0]


whole = st.integers(-5, 5)


@given(st.lists(whole, min_size=1, max_size=9), st.integers(0, 9), st.floats(0, 0.49))
def test_zeros_that_are_not_sent_count(values: list[int], zeros: int, trim: float) -> None:
    """A table row over all participants, of whom some do not touch it: against a sorted list with its zeros."""
    changes = [(user, 0, float(value)) for user, value in enumerate(values)]
    number = len(values) + zeros
    line = np.sort([*values, *([0] * zeros)])
    cut = int(trim * number)
    kept = line[cut : number - cut]
    for aggregate, expected in (("trimmed_mean", kept.mean()), ("median", np.median(line))):
        found = by_hand({"t": changes}, [[0], [0, 0, 0], [number]], aggregation=aggregate, trim=trim)[2]
        np.testing.assert_allclose(found, [expected, 0.0], rtol=0, atol=1e-9)


def dense(toys: ToyEngine, upload: Upload) -> list[tuple[Array, npt.NDArray[np.bool_]]]:
    """Per scope everybody's change [users, rows, width] and who has which row [users, rows]."""
    found = []
    for vector in toys.model.layout.uploaded:
        table = vector.table
        rows, width = (vector.values, vector.size) if table is None else (table.rows, table.width)
        change, has = np.zeros((USERS, rows, width)), np.zeros((USERS, rows), bool)
        for piece in upload.seen:
            if piece.table == vector_name(vector):
                change[piece.users, piece.ids] = piece.values.numpy()
                has[piece.users, piece.ids] = True
        found.append((change, has))
    return found


def in_numpy(change: Array, has: npt.NDArray[np.bool_], settings: Settings, *, everybody: bool, prior: float) -> Array:
    """The aggregate of every row, one after another [rows, width]."""
    out = np.zeros(change.shape[1:])
    for row in range(change.shape[1]):
        values = change[:, row] if everybody else change[has[:, row], row]
        if not len(values):
            continue
        if settings.aggregation == "median":
            one = np.median(values, axis=0)
        elif settings.aggregation == "trimmed_mean":
            cut = int(settings.trim * len(values))
            one = np.sort(values, axis=0)[cut : len(values) - cut].mean(0)
        else:
            one = values.mean(0)
        out[row] = one * len(values) / (len(values) + prior)
    return out


@pytest.mark.parametrize("table_mean", ["participants", "touched"])
@pytest.mark.parametrize("aggregate", AGGREGATES, ids=lambda one: one["aggregation"])
@pytest.mark.parametrize("spec", ["fedpa", "fedavg", "fedncf"])
def test_a_round_is_that_of_plain_numpy(tmp_path: Path, spec: str, aggregate: dict[str, Any], table_mean: str) -> None:
    toys = engine(tmp_path, method(spec, **aggregate, table_mean=table_mean, server_optimizer="mean"))
    settings, before = toys.method.settings, [rows.clone() for rows in toys.server.state]
    upload = toys.round(1)
    scopes = dense(toys, upload)
    if settings.aggregation == "norm_bound":
        length = np.sqrt(sum((change**2).sum((1, 2)) for change, _ in scopes))
        assert (length > settings.norm_bound).any()
        shrink = np.minimum(1, settings.norm_bound / length)[:, None, None]
        scopes = [(change * shrink, has) for change, has in scopes]
    for vector, (change, has), old, new in zip(
        toys.model.layout.uploaded, scopes, before, toys.server.state, strict=True
    ):
        table = vector.table is not None
        everybody = vector.scope.kind == "shared" and not (table and table_mean == "touched")
        prior = settings.table_prior if table else 0.0
        expected = in_numpy(change, has, settings, everybody=everybody, prior=prior) * settings.server_lr
        np.testing.assert_allclose((new - old).numpy().ravel(), expected.ravel(), rtol=0, atol=1e-10)
    assert any(has.any() for _, has in scopes)


@pytest.mark.parametrize("aggregate", [*AGGREGATES, {"aggregation": "mean"}], ids=lambda one: one["aggregation"])
def test_no_bit_depends_on_shards_chunks_or_order(tmp_path: Path, aggregate: dict[str, Any]) -> None:
    states = []
    for shards, users_per_chunk in ((1, 128), (2, 5), (7, 128)):
        found = method(**aggregate, participation=0.7, dtype="float32")
        toys = engine(tmp_path / str(shards), found, shards, users_per_chunk=users_per_chunk)
        for number in (1, 2):
            parts = [one.round(toys.server.state, number) for one in toys.shards]
            upload = Upload.empty(toys.model.layout, found.settings)
            for part in reversed(parts):
                upload += part
            toys.server.step(upload)
        states.append([rows.numpy().tobytes() for rows in toys.server.state])
    assert states[0] == states[1] == states[2]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "aggregate",
    [
        {"aggregation": "mean"},
        {"aggregation": "trimmed_mean", "trim": 0.0},
        {"aggregation": "norm_bound", "norm_bound": 1e9},
    ],
    ids=lambda one: one["aggregation"],
)
def test_what_leaves_nobody_out_is_the_mean_to_the_bit(tmp_path: Path, aggregate: dict[str, Any], dtype: str) -> None:
    """So is a run whose server may see rows and does not look; and as many weights are sent."""
    results = []
    for place, values in (("hidden", {"visible": "sum"}), ("seen", aggregate)):
        toys = engine(tmp_path / place, method(**values, dtype=dtype))
        uploads = [toys.round(number) for number in (1, 2)]
        results.append(
            [rows.numpy().tobytes() for rows in toys.server.state]
            + [(one.weights_up, one.weights_down, one.participants) for one in uploads]
        )
    assert results[0] == results[1]


FEDERATED = [name for name in method_names() if issubclass(find_method(name), FederatedMethod)]


@pytest.mark.parametrize("spec", FEDERATED)
def test_every_method_can_show_its_rows(tmp_path: Path, spec: str) -> None:
    """Nothing else changes, and what is seen adds up to the sums."""
    states = []
    for visible in ("sum", "rows"):
        toys = engine(tmp_path / visible, method(spec, visible=visible, dtype="float32", weighting="users"))
        upload = toys.round(1)
        states.append([rows.numpy().tobytes() for rows in toys.server.state])
    assert states[0] == states[1]
    layout, chosen = toys.model.layout, toys.method.settings
    intake = Intake(layout, chosen, "run", 1, {0: USERS})
    assert intake.offer(*pack_report(layout, chosen, Report("run", 1, 0, upload))) is None
    assert {one.table for one in upload.seen} == {vector_name(vector) for vector in layout.uploaded}


def test_one_of_many_cannot_move_a_median_or_trimmed_mean_beyond_the_others(tmp_path: Path) -> None:
    found = method(**AGGREGATES[1])
    toys = engine(tmp_path, found)
    upload = toys.round(1)
    layout = toys.model.layout
    name = vector_name(layout.uploaded[0])
    rest = [one for one in upload.seen if one.table != name]
    values = torch.cat([one.values for one in upload.seen if one.table == name])
    others = values[1:].clone()
    values[0] = -1e4
    assert len(values) == USERS
    upload.seen = (*rest, TableRows(name, np.arange(USERS), np.zeros(USERS, np.int64), values))
    for aggregate in AGGREGATES[:2]:
        settings = method(**aggregate).settings
        moved = robust_sums(upload, layout, settings)[0] / USERS / UNIT
        assert ((others.min(0).values - 1e-9 <= moved) & (moved <= others.max(0).values + 1e-9)).all()


def test_sums_alone_allow_the_mean_alone() -> None:
    for aggregate in AGGREGATES:
        found = method(visible="sum", **aggregate)
        with pytest.raises(ConfigError, match=r"single uploads.*sums alone of: .*\n.*--set visible=rows"):
            found.server(hidden_layout())


def hidden_layout() -> Layout:
    blocks = [Block(name, (Parameter(name, (1,), torch.zeros(1)),)) for name in ("a", "g")]
    return Layout(blocks, {"a": SHARED, "g": group("city")}.__getitem__, {"city": 3})


def test_secure_sums_hide_rows() -> None:
    with pytest.raises(ConfigError, match=r"secure sums hide single uploads.*shared, rows"):
        check_visibility(hand_layout(), Settings(), secure=True)
    with pytest.raises(ConfigError, match="secure sums hide"):
        check_visibility(hand_layout(), Settings(aggregation="median"), secure=True)
    check_visibility(hidden_layout(), Settings(), secure=True)


def test_a_weight_that_a_participant_claims_for_itself_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"weighting=rows"):
        check_visibility(hand_layout(), Settings(aggregation="median", weighting="rows"))


def test_gpfedrec_has_an_aggregation_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="graph of users, not by median"):
        engine(tmp_path, method("gpfedrec", aggregation="median"))


@pytest.mark.parametrize("trim", [-0.1, 0.5, float("nan")])
def test_a_share_that_leaves_nobody_is_refused(trim: float) -> None:
    with pytest.raises(ConfigError, match="'trim'"):
        Settings.checked({"trim": trim}, "here")


def test_a_round_of_nobody_changes_nothing(tmp_path: Path) -> None:
    for number, aggregate in enumerate(AGGREGATES):
        toys = engine(tmp_path / str(number), method(**aggregate, participation=1e-9))
        before = [rows.numpy().tobytes() for rows in toys.server.state]
        assert toys.round(1).participants == 0
        assert before == [rows.numpy().tobytes() for rows in toys.server.state]


def test_nothing_personal_is_seen(tmp_path: Path) -> None:
    toys = engine(tmp_path, method())
    layout = toys.model.layout
    upload = toys.round(1)
    assert {one.table for one in upload.seen} == {vector_name(vector) for vector in layout.uploaded}
    assert {scope.kind for scope in layout.scopes.values() if scope.sees == "rows"} == {"shared", "group"}
    assert layout.personal is not None and layout.personal.scope.sees == "sum"
