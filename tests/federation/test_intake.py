"""Whatever arrives among them, the sum of the honest uploads is the same to the bit, and every refusal has a reason."""

from __future__ import annotations

import functools
import operator
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arrays import toy, toy_engine
from fedpa.federation.form import PROTOCOL, REASONS, Message
from fedpa.federation.intake import Intake
from fedpa.federation.order import Report
from fedpa.federation.parameters import Layout
from fedpa.federation.server import SUM_LIMIT, Upload
from fedpa.federation.wire import pack_report
from fedpa.methods import find_method
from fedpa.settings import Settings

RUN, NUMBER, NODES, USERS = "5eed", 3, 4, 22
SPECS = ("fedpa", "fedpa seen", "gpfedrec", "fedavg")
SEEN = ("fedpa seen", "gpfedrec")


class Round:
    """The honest uploads of one round of a method, and whatever they may be turned into."""

    def __init__(self, spec: str, **values: Any) -> None:
        name, seen = spec.split(maxsplit=1)[0], {"visible": "rows"} if spec.endswith("seen") else {}
        method = find_method(name).configured("default", seen | values)
        data = toy(USERS, np.arange(USERS) % 5 + 4)
        parts = np.array_split(np.arange(USERS), NODES)
        with tempfile.TemporaryDirectory() as folder:
            engine = toy_engine(Path(folder), data, method, divided=parts)  # type: ignore[arg-type]
            self.uploads = [one.round(engine.server.state, NUMBER) for one in engine.shards]
        self.layout: Layout = engine.model.layout
        self.settings: Settings = method.settings
        self.nodes = {node: len(users) for node, users in enumerate(parts)}

    def message(self, node: int) -> tuple[dict[str, Any], dict[str, Any]]:
        header, arrays = pack_report(self.layout, self.settings, Report(RUN, NUMBER, node, self.uploads[node]))
        return dict(header), {name: one.copy() for name, one in arrays.items()}

    def intake(self) -> Intake:
        return Intake(self.layout, self.settings, RUN, NUMBER, self.nodes)

    def total(self, nodes: list[int] | None = None) -> Upload:
        chosen = [self.uploads[node] for node in (range(NODES) if nodes is None else nodes)]
        return functools.reduce(operator.add, chosen, Upload.empty(self.layout, self.settings))


@functools.cache
def honest(spec: str) -> Round:
    return Round(spec)


def bits(upload: Upload) -> tuple[object, ...]:
    """All of an upload, rows of single users in order; the bound is a sum of floats, and not part of any state."""
    seen = []
    for name in sorted({one.table for one in upload.seen}):
        pieces = [one for one in upload.seen if one.table == name]
        users, ids = (np.concatenate([getattr(one, key) for one in pieces]) for key in ("users", "ids"))
        order = np.lexsort((ids, users))
        values = torch.cat([one.values for one in pieces]).numpy()[order]
        seen.append((name, users[order].tobytes(), ids[order].tobytes(), values.tobytes()))
    tensors = [one.numpy().tobytes() for one in (*upload.sums, *upload.weights)]
    counts = (upload.participants, upload.rows, upload.loss, upload.weights_up, upload.weights_down)
    return (*tensors, *counts, *seen)


Number = Callable[[int], int]
Damage = Callable[[dict[str, Any], dict[str, Any], Number, Round], object]
"""Turns an honest message into another one; the third draws a number below a limit."""


def pick(arrays: dict[str, Any], draw: Number, prefix: str = "") -> str:
    names = sorted(name for name in arrays if name.startswith(prefix))
    return names[draw(len(names))]


def put(arrays: dict[str, Any], name: str, draw: Number, value: Any) -> None:
    arrays[name].reshape(-1)[draw(arrays[name].size)] = value


def heaviest(arrays: dict[str, Any]) -> str:
    return next(name for name in sorted(arrays) if name.startswith("weight/"))


def grow_a_sum(head: dict[str, Any], arrays: dict[str, Any], draw: Number, _: Round) -> None:
    """Beyond the bound, which is for all sums of the message."""
    beyond = int(head["bound"] * 1.01) + 1000
    put(arrays, pick(arrays, draw, "sum/"), draw, (beyond, -beyond, -(2**63), 2**63 - 1)[draw(4)])


def sum_of_nobody(_: dict[str, Any], arrays: dict[str, Any], draw: Number, honest: Round) -> None:
    name = pick(arrays, draw, "weight/")
    arrays[name][:] = 0
    total = arrays["sum/" + name.removeprefix("weight/")]
    if not total.any():
        total.reshape(-1)[0] = 1


def replaced(name: str, values: list[Any]) -> Damage:
    return lambda head, arrays, draw, round_: head.__setitem__(name, values[draw(len(values))])


def retyped(_: dict[str, Any], arrays: dict[str, Any], draw: Number, __: Round) -> None:
    name = pick(arrays, draw)
    one = arrays[name]
    kinds = [one.astype(np.int32), one.astype(np.complex64), one.astype(">i8"), one.astype(object), one.tolist(), None]
    kinds += [one.astype(np.float64 if one.dtype == np.int64 else np.int64), torch.from_numpy(one), b"", "array"]
    arrays[name] = kinds[draw(len(kinds))]


def reshaped(_: dict[str, Any], arrays: dict[str, Any], draw: Number, __: Round) -> None:
    name = pick(arrays, draw, ("sum/", "weight/")[draw(2)])
    one = arrays[name]
    shapes = [one[..., :-1], one[None], np.concatenate([one, one], -1), one[:0], one.reshape(-1, 1, 1)]
    arrays[name] = shapes[draw(len(shapes))]


def integers(head: dict[str, Any], _: dict[str, Any], draw: Number, __: Round) -> None:
    keys = ["round", "node", "participants", "rows", "loss", "weights_up", "weights_down", "protocol"]
    odd: list[Any] = [None, "1", 1.5, float("nan"), True, [1], {"a": 1}, 10**5000, -(1 << 62)]
    key = keys[draw(len(keys))]
    head[key] = odd[draw(7 if key == "protocol" else len(odd))]


DAMAGES: dict[str, list[Damage]] = {
    "header": [
        integers,
        replaced("run", [None, 7, "x" * 65, "x" * 10**6, ["a"]]),
        replaced("bound", ["nan", None, True, [1.0]]),
        replaced("kind", ["order", "", None, 3, ["report"]]),
        lambda head, _, draw, __: head.pop(sorted(head.keys() - {"protocol"})[draw(len(head) - 1)]),
        lambda head, *_: head.pop("protocol"),
        lambda head, *_: head.update(extra=1),
        lambda head, *_: head.update({str(n): n for n in range(10**4)}),
        lambda head, *_: head.clear(),
    ],
    "protocol": [replaced("protocol", [PROTOCOL + 1, PROTOCOL - 1, -5, 10**9])],
    "run": [replaced("run", ["5eee", "", RUN.upper()])],
    "node": [replaced("node", [NODES, -1, 10**9])],
    "late": [replaced("round", [NUMBER - 1, 0, -(10**6)])],
    "early": [replaced("round", [NUMBER + 1, 10**9])],
    "names": [
        lambda _, arrays, draw, __: arrays.pop(pick(arrays, draw)),
        lambda _, arrays, *__: arrays.clear(),
        lambda _, arrays, *__: arrays.update({"sum/personal": np.zeros((1, 4), np.int64)}),
        lambda _, arrays, draw, __: arrays.update({"sum/": arrays.pop(pick(arrays, draw))}),
        lambda _, arrays, *__: arrays.update({7: np.zeros(1)}),
    ],
    "dtype": [retyped],
    "shape": [reshaped],
    "bound": [
        grow_a_sum,
        replaced("bound", [float("nan"), float("inf"), 1e38, -1.0, SUM_LIMIT, SUM_LIMIT / NODES, -float("inf"), 2**61]),
        lambda head, *_: head.update(bound=0.0),
    ],
    "weights": [
        sum_of_nobody,
        lambda _, arrays, draw, __: put(arrays, pick(arrays, draw, "weight/"), draw, (-1, -(2**63))[draw(2)]),
        lambda _, arrays, draw, __: put(arrays, pick(arrays, draw, "weight/"), draw, (10**6, 2**63 - 1)[draw(2)]),
    ],
    "counts": [
        lambda head, _, draw, round_: head.update(participants=round_.nodes[head["node"]] + 1 + draw(10**6)),
        replaced("participants", [-1, 0]),
        replaced("rows", [-1, 0, 1, 1 << 41]),
        replaced("weights_up", [-1, 1 << 60]),
        replaced("weights_down", [-1, 1 << 60]),
    ],
}


def rows_damage(reason: str) -> list[Damage]:
    """Of single users' rows, where the server sees them."""

    def at(head: dict[str, Any], arrays: dict[str, Any], draw: Number, field: str, value: Any) -> None:
        put(arrays, pick(arrays, draw, f"seen.{field}/"), draw, value)

    def first(arrays: dict[str, Any], field: str) -> Any:
        return arrays[next(name for name in sorted(arrays) if name.startswith(f"seen.{field}/"))]

    def shorten(arrays: dict[str, Any], fields: tuple[str, ...]) -> None:
        for name in list(arrays):
            if name.startswith(tuple(f"seen.{field}/" for field in fields)):
                arrays[name] = arrays[name][1:]

    if reason == "value":
        odd = [np.nan, np.inf, -np.inf, 1e38, -1e38]
        return [lambda head, arrays, draw, _: at(head, arrays, draw, "values", odd[draw(len(odd))])]
    if reason == "shape":
        return [lambda _, arrays, draw, __: shorten(arrays, (("users", "ids", "values")[draw(3)],))]
    return [
        lambda _, arrays, *__: shorten(arrays, ("users", "ids", "values")),
        lambda head, arrays, draw, _: at(head, arrays, draw, "users", (-1, 2**63 - 1)[draw(2)]),
        lambda head, arrays, draw, _: at(head, arrays, draw, "ids", (-1, 10**6, 2**63 - 1)[draw(3)]),
        lambda _, arrays, *__: first(arrays, "users").__setitem__(slice(None), first(arrays, "users")[::-1].copy()),
        lambda _, arrays, *__: first(arrays, "values").__imul__(np.float32(0.5)),
        lambda _, arrays, *__: first(arrays, "users").__iadd__(np.arange(len(first(arrays, "users")))),
    ]


ROWS = {reason: rows_damage(reason) for reason in ("value", "shape", "rows")}


def damaged(draw: Number, spec: str, node: int) -> tuple[str, Any, Any]:
    """A bad message, and the reason for which it must be refused."""
    around = honest(spec)
    header, arrays = around.message(node)
    odd = draw(12)
    if odd == 0:
        return "header", (None, [], 3, "report", b"")[draw(5)], arrays
    if odd == 1:
        return "names", header, (None, [], 3, "report")[draw(4)]
    if odd == 2 and spec in SEEN:
        reason = sorted(ROWS)[draw(3)]
        ROWS[reason][draw(len(ROWS[reason]))](header, arrays, draw, around)
        return reason, header, arrays
    reason = sorted(DAMAGES)[draw(len(DAMAGES))]
    DAMAGES[reason][draw(len(DAMAGES[reason]))](header, arrays, draw, around)
    return reason, header, arrays


@settings(max_examples=250, deadline=None)
@given(st.data())
def test_the_sum_of_the_honest_is_unchanged_among_bad_uploads(data: st.DataObject) -> None:
    """At least one bad upload in every example, up to eight, in any order with the honest ones and repetitions."""
    draw: Number = lambda limit: data.draw(st.integers(0, limit - 1))  # noqa: E731
    spec = SPECS[draw(len(SPECS))]
    intake, expected, sent = honest(spec).intake(), Counter[str](), set[int]()
    order = data.draw(st.permutations(range(NODES)))
    stream = data.draw(st.permutations([*order, *(-1 for _ in range(1 + draw(8)))]))
    for node in stream:
        if node >= 0:
            assert intake.offer(*honest(spec).message(node)) is None
            sent.add(node)
            if draw(3) == 0:
                assert intake.offer(*honest(spec).message(node)) == "repeated"
                expected["repeated"] += 1
            continue
        victim = draw(NODES)
        reason, header, arrays = damaged(draw, spec, victim)
        told = intake.offer(header, arrays)
        # What is of this round and node is asked before what is in it.
        if victim in sent and reason not in {"header", "protocol", "run", "node", "late", "early"}:
            reason = "repeated"
        assert told == reason
        expected[reason] += 1
    assert intake.accepted == tuple(range(NODES))
    assert bits(intake.total()) == bits(honest(spec).total())
    assert intake.refused == expected
    assert set(intake.refused) <= set(REASONS)


@pytest.mark.parametrize(
    ("spec", "reason"), [*((s, r) for s in SPECS for r in DAMAGES), *((s, r) for s in SEEN for r in ("value", "rows"))]
)
def test_every_damage_is_refused_for_its_reason(spec: str, reason: str) -> None:
    """Each of them alone, on a fresh round, with many choices of what it draws."""
    rng = np.random.default_rng(0)
    more = ROWS.get(reason, []) if spec in SEEN else []
    for damage in [*DAMAGES.get(reason, []), *more]:
        for _ in range(20):
            intake = honest(spec).intake()
            header, arrays = honest(spec).message(1)
            damage(header, arrays, lambda limit: int(rng.integers(limit)), honest(spec))
            assert intake.offer(header, arrays) == reason
            assert intake.refused == {reason: 1}
            assert bits(intake.total()) == bits(honest(spec).total([]))
            assert intake.offer(*honest(spec).message(1)) is None  # a refusal does not use up the node's turn


@pytest.mark.parametrize("values", [{"weighting": "rows"}, {"participation": 0.5}, {"participation": 1e-9}])
@pytest.mark.parametrize("spec", SPECS)
def test_honest_uploads_of_every_kind_are_accepted(spec: str, values: dict[str, Any]) -> None:
    found = Round(spec, **values)
    intake = found.intake()
    assert [intake.offer(*found.message(node), sender=node) for node in range(NODES)] == [None] * NODES
    assert bits(intake.total()) == bits(found.total())
    assert not intake.refused


def test_what_claims_to_be_of_another_node_is_refused() -> None:
    found = honest("fedpa")
    intake = found.intake()
    assert intake.offer(*found.message(1), sender=2) == "node"
    assert intake.offer(*found.message(2), sender=2) is None


def test_nothing_that_is_done_to_a_message_later_changes_the_sum() -> None:
    found = honest("gpfedrec")
    intake = found.intake()
    messages: list[Message] = [found.message(node) for node in range(NODES)]
    for header, arrays in messages:
        intake.offer(header, arrays)
        for name, array in arrays.items():
            if not name.startswith("seen"):
                array[:] = 7
    first = bits(intake.total())
    intake.total().sums[0][:] = 1
    assert first == bits(intake.total()) == bits(found.total())


def test_bounds_of_all_nodes_together_stay_in_range() -> None:
    """Each node may use its share of the range, whoever comes first."""
    found = honest("fedavg")
    intake = found.intake()
    for node in range(NODES):
        header, arrays = found.message(node)
        header["bound"] = SUM_LIMIT / NODES * 0.999
        assert intake.offer(header, arrays) is None
    assert intake.total().bound < SUM_LIMIT
