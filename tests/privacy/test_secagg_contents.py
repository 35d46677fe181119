"""A round's upload and sums as one vector: exact, of one shape whatever the users, refused where it could overflow."""

from __future__ import annotations

import functools
import operator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from arrays import toy, toy_engine
from fedpa.errors import ConfigError
from fedpa.evaluation.sums import ClickSums
from fedpa.federation.node import split_sums
from fedpa.federation.order import Sums
from fedpa.federation.parameters import Layout
from fedpa.federation.server import Upload
from fedpa.federation.tally import Tally
from fedpa.methods import find_method
from fedpa.privacy.secagg.contents import Limits, RoundVector, TallyVector
from fedpa.privacy.secagg.slots import Slots
from fedpa.privacy.secagg.terms import AbortError, ProtocolError
from fedpa.settings import Settings
from secured import Nodes

NODES, USERS = 5, 25


class Round(NamedTuple):
    """What five nodes computed in a round."""

    layout: Layout
    settings: Settings
    uploads: list[Upload]
    sums: list[Sums]

    def vector(self, **limits: Any) -> RoundVector:
        return RoundVector(self.layout, self.settings, Limits(**limits), train=True)


def rounds(folder: Path, spec: str = "fedpa", seed: int = 0, **values: Any) -> Round:
    method = find_method(spec).configured("default", values)
    data = toy(USERS, np.arange(USERS) % 5 + 4, seed)
    parts = np.array_split(np.arange(USERS), NODES)
    engine = toy_engine(folder, data, method, divided=parts)  # type: ignore[arg-type]
    uploads = [shard.round(engine.server.state, 1) for shard in engine.shards]
    sums = [split_sums(shard.rows, shard.scores(engine.server.state)) for shard in engine.shards]
    return Round(engine.model.layout, method.settings, uploads, sums)


def bits(upload: Upload) -> tuple[object, ...]:
    tensors = [one.numpy().tobytes() for one in (*upload.sums, *upload.weights)]
    return (*tensors, upload.participants, upload.rows, upload.loss, upload.weights_up, upload.weights_down)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_secure_sum_is_the_plain_sum_to_the_bit(tmp_path: Path, dtype: str) -> None:
    made = rounds(tmp_path / "rounds", dtype=dtype, weighting="rows")
    vector = made.vector(users=10_000)
    packed = {n: vector.pack(made.uploads[n], made.sums[n], users=5) for n in range(NODES)}
    total, stayed = Nodes(tmp_path / "nodes", packed).sum()
    upload, sums, users = vector.unpack(total, len(stayed))
    assert upload is not None and users == USERS
    assert bits(upload) == bits(functools.reduce(operator.add, made.uploads))
    for split in ("train", "val", "test"):
        assert sums[split] == functools.reduce(operator.add, (one[split] for one in made.sums))


def test_a_vector_for_scores_alone(tmp_path: Path) -> None:
    made = rounds(tmp_path)
    vector = RoundVector(made.layout, made.settings, Limits(), train=False)
    upload, sums, users = vector.unpack(vector.pack(None, made.sums[0], users=5), 1)
    assert (upload, sums, users) == (None, made.sums[0], 5)
    for upload in (None, made.uploads[0]):
        with pytest.raises(ProtocolError, match="training was asked for"):
            (made.vector() if upload is None else vector).pack(upload, made.sums[0], users=5)


def test_the_form_is_the_same_whatever_the_groups(tmp_path: Path) -> None:
    one, other = rounds(tmp_path / "a"), rounds(tmp_path / "b", seed=1)
    assert one.vector().slots.digest == other.vector().slots.digest
    lengths = {
        len(m.vector().pack(u, s, users=5)) for m in (one, other) for u, s in zip(m.uploads, m.sums, strict=True)
    }
    assert lengths == {one.vector().slots.length}
    values = [v.values for v in one.layout.uploaded]
    assert max(values) > 1 and all(len(u.sums[i]) == n for u in one.uploads for i, n in enumerate(values))


def test_methods_whose_server_sees_rows_are_refused(tmp_path: Path) -> None:
    made = rounds(tmp_path, "gpfedrec")
    with pytest.raises(ConfigError, match="the server is to see the rows of: items"):
        made.vector()


@pytest.mark.parametrize(
    ("dtype", "change", "users", "fits"),
    [
        ("float32", 16.0, 1_000_000, True),
        ("float32", 67.0, 1_000_000, True),  # 67 * 10^6 < 2^26
        ("float32", 68.0, 1_000_000, False),
        ("float64", 16.0, 1_000_000, False),
        ("float64", 0.26, 1_000_000, True),  # 0.26 * 10^6 < 2^18
        ("float64", 0.27, 1_000_000, False),
        ("float32", 16.0, 10_000_000, False),
        ("float32", 0.0, 10, False),
    ],
)
def test_sums_that_do_not_fit_are_refused_at_the_start(dtype: Any, change: float, users: int, fits: bool) -> None:
    limits, chosen = Limits(change, users), Settings(dtype=dtype)
    if fits:
        limits.check(chosen)
        return
    with pytest.raises(ConfigError, match="does not fit 64-bit integers" if change else "expected above 0"):
        limits.check(chosen)


def test_a_million_users_largest_changes_add_up_exactly() -> None:
    limits = Limits(67.0, 1_000_000)
    limits.check(Settings())
    largest = int(limits.bound(200_000, Settings()))
    each = np.full(3, largest, np.int64) * np.array([1, -1, 1])
    total = np.add.reduce([each] * 5)
    assert total.tolist() == [5 * largest, -5 * largest, 5 * largest]


def broken(upload: Upload, **changes: Any) -> Upload:
    made = Upload([one.clone() for one in upload.sums], [one.clone() for one in upload.weights])
    for name in ("participants", "rows", "loss", "weights_up", "weights_down", "bound"):
        setattr(made, name, changes.get(name, getattr(upload, name)))
    return made


def test_what_cannot_be_true_is_not_masked(tmp_path: Path) -> None:
    made = rounds(tmp_path)
    vector, good, sums = made.vector(), made.uploads[0], made.sums[0]
    beyond = broken(good)
    beyond.sums[0].view(-1)[0] = int(good.bound) + 10**6
    heavy = broken(good)
    heavy.weights[0][:] = 99
    shaped = broken(good)
    shaped.sums[0] = shaped.sums[0][:, :-1]
    odd = {**sums, "val": replace(ClickSums.zero(), rows=1)}
    cases: list[tuple[Upload, Sums, str]] = [
        (broken(good, bound=float("inf")), sums, "changes of up to inf"),
        (broken(good, bound=float("nan")), sums, "changes of up to nan"),
        (broken(good, bound=2.0**36 * 17 * good.participants), sums, "changes of up to 17"),
        (broken(good, participants=6), sums, "cannot be true"),
        (beyond, sums, "cannot be true"),
        (heavy, sums, "cannot be true"),
        (shaped, sums, "cannot be true"),
        (good, odd, "contradict"),
    ]
    for upload, said, reason in cases:
        with pytest.raises(ProtocolError, match=reason):
            vector.pack(upload, said, users=5)
    with pytest.raises(ProtocolError, match="declared are changes of 16 by 3"):
        made.vector(users=3).pack(good, sums, users=5)


def test_a_sum_of_more_users_than_declared_is_refused(tmp_path: Path) -> None:
    """Each node is within the limits; only their sum shows that it may have overflowed."""
    made = rounds(tmp_path)
    vector = made.vector(users=20)
    total = np.add.reduce([vector.pack(u, s, users=5) for u, s in zip(made.uploads, made.sums, strict=True)])
    with pytest.raises(ProtocolError, match="by 25 users"):
        vector.unpack(total, NODES)


def test_masks_that_are_still_on_are_noticed(tmp_path: Path) -> None:
    made = rounds(tmp_path)
    vector = made.vector()
    total = np.add.reduce([vector.pack(u, s, users=5) for u, s in zip(made.uploads, made.sums, strict=True)])
    with pytest.raises(AbortError, match="no sum over 5 nodes"):
        vector.unpack(total + 12345, NODES)
    with pytest.raises(AbortError, match="no sum over 4 nodes"):
        vector.unpack(total, NODES - 1)


large = st.integers(-(2**92) + 1, 2**92 - 1)


@hypothesis_settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(large, st.integers(-(2**40), 2**40)), min_size=1, max_size=60))
def test_integers_of_any_size_add_up(values: list[tuple[int, int]]) -> None:
    slots = Slots({"a": (2, 1)}, ["x", "y"])
    packed = [slots.pack({"a": np.array([[b], [-b]])}, {"x": a, "y": b}) for a, b in values]
    arrays, integers = slots.unpack(np.add.reduce(packed), len(values))
    assert integers == {"x": sum(a for a, _ in values), "y": sum(b for _, b in values)}
    assert arrays["a"].tolist() == [[integers["y"]], [-integers["y"]]]


def test_slots_refuse_what_was_not_declared() -> None:
    slots = Slots({"a": (2,)}, ["x"])
    good = np.zeros(2, np.int64)
    cases: list[tuple[dict[str, npt.NDArray[Any]], dict[str, int]]] = [
        ({"a": np.zeros(3, np.int64)}, {"x": 0}),
        ({"a": np.zeros(2)}, {"x": 0}),
        ({"b": good}, {"x": 0}),
        ({"a": good}, {}),
        ({"a": good}, {"x": 2**92}),
    ]
    for arrays, integers in cases:
        with pytest.raises(ProtocolError):
            slots.pack(arrays, integers)
    assert Slots({"a": (2,)}, ["x"]).digest != Slots({"b": (2,)}, ["x"]).digest


def counts(nodes: int) -> list[Tally]:
    rng = np.random.default_rng(0)
    found = []
    for _ in range(nodes):
        views = np.concatenate([np.zeros((1, 7), np.int64), rng.integers(0, 9, (3, 7)).cumsum(0)])
        found.append(Tally(np.array([10, 20, 31]), views, views // 3))
    return found


def test_item_counts_add_up_and_periods_must_agree(tmp_path: Path) -> None:
    tallies = counts(NODES)
    vector = TallyVector(3, 7)
    packed = {n: vector.pack(tally) for n, tally in enumerate(tallies)}
    total, stayed = Nodes(tmp_path, packed).sum()
    found, plain = vector.unpack(total, len(stayed)), functools.reduce(operator.add, tallies)
    for name in ("ends", "views", "clicks"):
        assert getattr(found, name).tolist() == getattr(plain, name).tolist()
    for ends in ([10, 20, 36], [10, 20, 32]):  # one whose mean is whole, one whose mean is not
        odd = Tally(np.array(ends), tallies[0].views, tallies[0].clicks)
        mixed = np.add.reduce([vector.pack(odd), *(packed[n] for n in range(1, 5))])
        with pytest.raises(ProtocolError, match="different periods"):
            vector.unpack(mixed, NODES)
    negative = Tally(tallies[0].ends, tallies[0].views - 1, tallies[0].clicks)
    with pytest.raises(ProtocolError, match="cannot be true"):
        vector.pack(negative)


def test_the_tensors_of_a_sum_are_its_own(tmp_path: Path) -> None:
    made = rounds(tmp_path)
    vector = made.vector()
    packed = vector.pack(made.uploads[0], made.sums[0], users=5)
    upload, _, _ = vector.unpack(packed, 1)
    assert upload is not None
    upload.sums[0].add_(1)
    assert torch.equal(upload.sums[0] - 1, made.uploads[0].sums[0])
    assert vector.unpack(packed, 1)[0] is not None
