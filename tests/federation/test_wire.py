"""What is packed comes back to the bit, and nothing but what scopes upload is ever packed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from arrays import ToyEngine, toy, toy_engine
from fedpa.evaluation.sums import ClickSums
from fedpa.federation.form import PROTOCOL, Message, Refused
from fedpa.federation.order import Base, Order, Report
from fedpa.federation.server import Upload
from fedpa.federation.tally import Tally
from fedpa.federation.wire import (
    pack_order,
    pack_report,
    pack_sums,
    pack_tally,
    unpack_order,
    unpack_report,
    unpack_sums,
    unpack_tally,
)
from fedpa.methods import find_method

RUN = "0a1b"
USERS = 9
SPECS = ["fedpa", "gpfedrec", "fedmf"]


def engine(folder: Path, spec: str = "fedpa", **settings: Any) -> ToyEngine:
    found = find_method(spec).configured("default", {"dtype": "float32", **settings})
    return toy_engine(folder, toy(USERS, np.arange(USERS) + 4), found)  # type: ignore[arg-type]


def through_json(message: Message) -> Message:
    return json.loads(json.dumps(message[0], allow_nan=False)), message[1]


def same(one: Upload, other: Upload) -> bool:
    scalars = ("participants", "rows", "loss", "weights_up", "weights_down", "bound")
    tensors = zip((*one.sums, *one.weights), (*other.sums, *other.weights), strict=True)
    return all(torch.equal(a, b) for a, b in tensors) and all(
        getattr(one, name) == getattr(other, name) for name in scalars
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("spec", SPECS)
def test_a_report_comes_back_to_the_bit(tmp_path: Path, spec: str, dtype: str) -> None:
    toys = engine(tmp_path, spec, dtype=dtype)
    layout, settings = toys.model.layout, toys.method.settings
    upload = toys.round(1)
    message = through_json(pack_report(layout, settings, Report(RUN, 1, 3, upload)))
    back = unpack_report(layout, settings, *message)
    assert (back.run, back.number, back.node) == (RUN, 1, 3)
    assert same(back.upload, upload)
    for piece in back.upload.seen:
        whole = [one for one in upload.seen if one.table == piece.table]
        assert len(piece.users) == sum(len(one.users) for one in whole) > 0
        assert (np.lexsort((piece.ids, piece.users)) == np.arange(len(piece.users))).all()
    assert bool(back.upload.seen) == (spec == "gpfedrec")


@pytest.mark.parametrize("spec", SPECS)
def test_an_order_comes_back_to_the_bit(tmp_path: Path, spec: str) -> None:
    toys = engine(tmp_path, spec)
    layout, settings = toys.model.layout, toys.method.settings
    toys.round(1)
    order = Order(RUN, 2, tuple(toys.server.state), toys.server.downlink, train=False)
    sent = Base(1, tuple(range(200)))
    back, base = unpack_order(layout, settings, *through_json(pack_order(layout, order, sent)))
    assert (back.run, back.number, back.train, base) == (RUN, 2, False, sent)
    assert all(torch.equal(a, b) for a, b in zip(back.state, order.state, strict=True))
    assert [one.table for one in back.downlink] == [one.table for one in order.downlink]
    for one, other in zip(back.downlink, order.downlink, strict=True):
        assert torch.equal(one.values, other.sorted().values)
    assert bool(back.downlink) == (spec == "gpfedrec")


def test_a_report_of_nobody_can_be_sent(tmp_path: Path) -> None:
    toys = engine(tmp_path, "gpfedrec", dtype="float64")
    layout, settings = toys.model.layout, toys.method.settings
    empty = Upload.empty(layout, settings)
    back = unpack_report(layout, settings, *pack_report(layout, settings, Report(RUN, 1, 0, empty)))
    assert same(back.upload, empty)


@pytest.mark.parametrize("spec", SPECS)
def test_messages_hold_the_uploaded_scopes_and_nothing_else(tmp_path: Path, spec: str) -> None:
    """Names and sizes are those of the shared and group scopes, and no number of a user's own is among them."""
    toys = engine(tmp_path, spec)
    layout, settings = toys.model.layout, toys.method.settings
    upload = toys.round(1)
    uploaded = {
        (v.table.name if v.table else str(v.scope) + (", rows" if v.scope.sees == "rows" else "")): v.values * v.size
        for v in layout.uploaded
    }
    assert sum(v.values * v.size for v in layout.uploaded) == sum(
        p.size * (layout.group_sizes[layout.scopes[p.name].key or ""] if layout.scopes[p.name].kind == "group" else 1)
        for p in (*layout.parameters(), *(t.parameter for t in layout.tables))
        if layout.scopes[p.name].kind in {"shared", "group"}
    )
    assert layout.personal_size > 0
    order = pack_order(layout, Order(RUN, 2, tuple(toys.server.state)))[1]
    assert {name.removeprefix("state/"): one.size for name, one in order.items()} == uploaded
    report = pack_report(layout, settings, Report(RUN, 1, 0, upload))[1]
    sums = {name.removeprefix("sum/"): one.size for name, one in report.items() if name.startswith("sum/")}
    assert sums == uploaded
    rest = {name for name in report if not name.startswith(("sum/", "weight/"))}
    seen = {v.table.name for v in layout.uploaded if v.table is not None and v.scope.sees == "rows"}
    assert rest == {f"seen.{field}/{name}" for name in seen for field in ("users", "ids", "values")}


def test_no_memory_is_copied_but_what_may_not_be_written_to(tmp_path: Path) -> None:
    toys = engine(tmp_path)
    layout, settings = toys.model.layout, toys.method.settings
    upload = toys.round(1)
    header, arrays = pack_report(layout, settings, Report(RUN, 1, 0, upload))
    back = unpack_report(layout, settings, header, arrays).upload
    assert [a.data_ptr() for a in back.sums] == [a.data_ptr() for a in upload.sums]
    for array in arrays.values():
        array.flags.writeable = False
    back = unpack_report(layout, settings, header, arrays).upload
    back.sums[0].zero_()
    assert upload.sums[0].any()


def some_sums() -> dict[str, ClickSums]:
    rng = np.random.default_rng(0)
    return {
        name: ClickSums.of(rng.integers(0, 7, rows), rng.integers(0, 2, rows), rng.random(rows))
        for name, rows in (("train", 200), ("val", 30), ("test", 1))
    }


def test_sums_come_back_to_the_bit() -> None:
    sums = some_sums()
    assert unpack_sums(RUN, 4, 2, *through_json(pack_sums(RUN, 4, 2, sums))) == sums
    assert unpack_sums(RUN, 4, 2, *pack_sums(RUN, 4, 2, {})) == dict.fromkeys(sums, ClickSums.zero())


def test_sums_of_very_many_rows_fit() -> None:
    """A log-loss of 2^30 rows in units of 2^-40 is far beyond 64 bits."""
    many = 1 << 30
    histogram = np.zeros((2, 10_000), np.int64)
    histogram[1, 5] = many
    one = ClickSums(many, many, 3, 1 << 70, 2, 9, (1 << 71) + 5, 1 << 69, histogram)
    assert unpack_sums(RUN, 1, 0, *pack_sums(RUN, 1, 0, {"val": one}))["val"] == one


def tally() -> Tally:
    data = toy(USERS, np.arange(USERS) + 4)
    rng = np.random.default_rng(0)
    data.__dict__["rows"] = lambda *_: np.arange(data.n_rows)
    return Tally.of(
        data, 3, data.item.astype(np.int64), data.time, rng.integers(0, 2, data.n_rows), np.ones(data.n_rows, bool)
    )


def test_a_tally_comes_back_to_the_bit() -> None:
    one = tally()
    back = unpack_tally(RUN, 1, 3, one.views.shape[1], *through_json(pack_tally(RUN, 1, one)))
    assert all(np.array_equal(getattr(back, key), getattr(one, key)) for key in ("ends", "views", "clicks"))
    assert one.views[-1].any()


Change = Callable[[dict[str, Any], dict[str, Any]], object]
BAD: list[tuple[str, str, Change]] = [
    ("protocol", "protocol", lambda head, _: head.update(protocol=PROTOCOL + 1)),
    ("another kind", "header", lambda head, _: head.update(kind="order")),
    ("a missing key", "header", lambda head, _: head.pop("node")),
    ("an extra key", "header", lambda head, _: head.update(more=1)),
    ("another run", "run", lambda head, _: head.update(run="other")),
    ("another node", "node", lambda head, _: head.update(node=7)),
    ("missing", "names", lambda _, arrays: arrays.popitem()),
    ("empty", "names", lambda _, arrays: arrays.clear()),
]
BAD_SUMS: list[tuple[str, str, Change]] = [
    ("an earlier round", "late", lambda head, _: head.update(round=3)),
    ("a later round", "early", lambda head, _: head.update(round=5)),
    ("no array", "dtype", lambda _, arrays: arrays.update({"numbers/val": [1]})),
    ("floats", "dtype", lambda _, arrays: arrays.update({"histogram/val": np.zeros((2, 10_000))})),
    ("short", "shape", lambda _, arrays: arrays.update({"histogram/val": np.zeros((2, 9), np.int64)})),
    ("negative", "counts", lambda _, arrays: arrays["histogram/val"].__setitem__((0, 0), -1)),
    ("more rows", "counts", lambda _, arrays: arrays["histogram/val"].__setitem__((0, 0), 10**9)),
    ("a negative loss", "counts", lambda _, arrays: arrays["numbers/val"].__setitem__((6, 0), -1)),
    ("more users than rows", "counts", lambda _, arrays: arrays["numbers/val"].__setitem__((2, 1), 10**6)),
]
BAD_TALLY: list[tuple[str, str, Change]] = [
    ("fewer views than clicks", "counts", lambda _, arrays: arrays["clicks"].__setitem__(-1, 10**6)),
    ("negative", "counts", lambda _, arrays: arrays["views"].__setitem__((1, 0), -1)),
    ("a period that takes rows back", "counts", lambda _, arrays: arrays["views"].__setitem__((1, 0), 10**6)),
    ("periods in disorder", "counts", lambda _, arrays: arrays["ends"].__setitem__(0, 10**9)),
    ("of other items", "shape", lambda _, arrays: arrays.update(views=arrays["views"][:, 1:])),
]


@pytest.mark.parametrize(("reason", "change"), [one[1:] for one in BAD + BAD_SUMS], ids=[o[0] for o in BAD + BAD_SUMS])
def test_bad_sums_are_refused(reason: str, change: Change) -> None:
    header, arrays = pack_sums(RUN, 4, 2, some_sums())
    change(header, arrays)
    with pytest.raises(Refused) as refusal:
        unpack_sums(RUN, 4, 2, header, arrays)
    assert refusal.value.reason == reason


@pytest.mark.parametrize(
    ("reason", "change"), [one[1:] for one in BAD + BAD_TALLY], ids=[o[0] for o in BAD + BAD_TALLY]
)
def test_a_bad_tally_is_refused(reason: str, change: Change) -> None:
    one = tally()
    header, arrays = pack_tally(RUN, 2, one)
    change(header, arrays)
    with pytest.raises(Refused) as refusal:
        unpack_tally(RUN, 2, 3, one.views.shape[1], header, arrays)
    assert refusal.value.reason == reason


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_node_refuses_a_state_that_is_not_finite(tmp_path: Path, value: float) -> None:
    toys = engine(tmp_path)
    layout, settings = toys.model.layout, toys.method.settings
    header, arrays = pack_order(layout, Order(RUN, 2, tuple(one.clone() for one in toys.server.state)))
    next(iter(arrays.values()))[0, 0] = value
    with pytest.raises(Refused, match=r"refused \(value\)"):
        unpack_order(layout, settings, header, arrays)
