"""Sums of changes are exact; the server moves by their mean."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import add
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpa.errors import ArtifactError, ConfigError, FedpaError
from fedpa.federation.parameters import PERSONAL, SHARED, Block, Layout, Parameter, group
from fedpa.federation.server import FRACTION_BITS, Server, Upload, exact_product

RULE = {"a": SHARED, "g": group("city"), "b": SHARED, "own": PERSONAL}


def layout() -> Layout:
    blocks = [
        Block("a", (Parameter("a", (2, 2), torch.arange(4.0).view(2, 2)),)),
        Block("g", (Parameter("g", (2,), torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), per_value=True),)),
        Block("own", (Parameter("own", (5,), torch.zeros(5)),)),
        Block("b", (Parameter("b", (1,), torch.tensor([9.0])),)),
    ]
    return Layout(blocks, RULE.__getitem__, {"city": 3})


def upload(sums: Sequence[int], weights: Sequence[int], bound: float = 0.0, people: int = 1) -> Upload:
    """Filled from two short lists, repeated."""
    found = Upload.empty(layout())
    found.sums = [torch.tensor(np.resize(sums, t.shape)) for t in found.sums]
    found.weights = [torch.tensor(np.resize(weights, t.shape)) for t in found.weights]
    found.participants, found.rows, found.loss, found.weights_up = people, 2 * people, sums[0], 7 * people
    found.weights_down = 5 * people
    found.bound = bound
    return found


def content(found: Upload) -> tuple[object, ...]:
    tensors = [t.tolist() for t in (*found.sums, *found.weights)]
    return (*tensors, found.participants, found.rows, found.loss, found.weights_up, found.weights_down)


whole = st.integers(-(2**40), 2**40)
uploads = st.builds(
    upload,
    st.lists(whole, min_size=1, max_size=6),
    st.lists(st.integers(0, 1000), min_size=1, max_size=4),
    st.floats(0, 2.0**50),
    st.integers(0, 50),
)


@settings(deadline=None)
@given(st.lists(uploads, min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_sums_of_uploads_do_not_depend_on_order(found: list[Upload], random: Random) -> None:
    total = reduce(add, found, Upload.empty(layout()))
    expected = sum(int(one.sums[0][0, 0]) for one in found)
    assert int(total.sums[0][0, 0]) == expected
    other = list(found)
    random.shuffle(other)
    half = len(other) // 2
    left, right = (reduce(add, part, Upload.empty(layout())) for part in (other[:half], other[half:]))
    assert content(left + right) == content(total) == content(right + left)


def test_adding_leaves_the_parts_as_they_are() -> None:
    one = upload([5, 6], [1])
    before = content(one)
    total = one + one
    assert content(one) == before
    assert total.sums[0].tolist() == [[10, 12, 10, 12, 10]]


@pytest.mark.parametrize("bound", [2.0**61, float("inf"), float("nan")])
def test_sums_that_may_overflow_are_refused(bound: float) -> None:
    with pytest.raises(FedpaError, match=r"training diverged.*\n.*lower the learning rate"):
        upload([1], [1], bound) + upload([1], [1], bound)


def test_the_guard_is_below_the_range_of_the_integers() -> None:
    almost = upload([2**61 - 1], [1], 2.0**61 - 2.0**10)
    assert int((almost + almost).sums[0][0, 0]) == 2**62 - 2


def test_a_step_is_the_mean_within_each_value() -> None:
    server = Server(layout(), torch.float64)
    shapes = [tuple(table.shape) for table in server.state]
    assert shapes == [(1, 5), (3, 2)]
    unit = 2 ** FRACTION_BITS[torch.float64]
    found = Upload.empty(server.layout)
    found.sums = [torch.full((1, 5), 6 * unit), torch.tensor([[4, 8], [0, 0], [-3, 3]]) * unit]
    found.weights = [torch.tensor([3]), torch.tensor([4, 0, 3])]
    server.step(found)
    named = server.named()
    assert named["a"].tolist() == [[2.0, 3.0], [4.0, 5.0]]
    assert named["b"].tolist() == [11.0]
    assert named["g"].tolist() == [[2.0, 4.0], [3.0, 4.0], [4.0, 7.0]]
    assert named.keys() == {"a", "b", "g"}


def test_nobody_moves_nothing() -> None:
    server = Server(layout(), torch.float32)
    before = [table.clone() for table in server.state]
    server.step(Upload.empty(server.layout))
    assert all(torch.equal(a, b) for a, b in zip(before, server.state, strict=True))


def test_a_step_makes_new_tensors() -> None:
    """The best state is kept by reference."""
    server = Server(layout(), torch.float32)
    kept = list(server.state)
    before = [table.clone() for table in kept]
    server.step(upload([2**36], [1]))
    assert all(torch.equal(a, b) for a, b in zip(before, kept, strict=True))
    assert not torch.equal(kept[0], server.state[0])


def test_named_parameters_round_trip() -> None:
    server, other = Server(layout(), torch.float32), Server(layout(), torch.float32)
    server.step(upload([2**36, 3 * 2**35], [1, 2]))
    other.load(server.named(), "here")
    assert all(torch.equal(a, b) for a, b in zip(server.state, other.state, strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a": None}, r"here: .* a: expected \(2, 2\), found nothing"),
        ({"new": torch.zeros(1)}, r"new: expected nothing, found \(1,\)"),
        ({"g": torch.zeros(2, 2)}, r"g: expected \(3, 2\), found \(2, 2\)"),
    ],
)
def test_parameters_that_do_not_fit_are_named(change: dict[str, torch.Tensor | None], message: str) -> None:
    server = Server(layout(), torch.float32)
    named = {name: value for name, value in (server.named() | change).items() if value is not None}
    with pytest.raises(ArtifactError, match=message):
        server.load(named, "here")


def test_a_start_of_each_user_cannot_be_shared() -> None:
    block = Block("a", (Parameter("a", (1,), lambda users: torch.zeros(len(users), 1)),))
    with pytest.raises(ConfigError, match="'a': a start that depends on the user needs the personal scope"):
        Server(Layout([block], lambda _: SHARED, {}), torch.float32)


@pytest.mark.parametrize("size", [2.0**20, 2.0**52])
def test_products_of_integers_are_exact(size: float) -> None:
    """Against Python's integers, below and above what float64 adds exactly."""
    rng = np.random.default_rng(0)
    units = np.rint(rng.uniform(-size, size, (50, 3)))
    member = rng.integers(0, 9, (2, 50))
    bound = float(np.abs(units).max() * member.sum())
    found = exact_product(torch.from_numpy(member), torch.from_numpy(units), bound)
    expected = [
        [sum(int(w) * int(u) for w, u in zip(row, column, strict=True)) for column in units.T] for row in member
    ]
    assert found.tolist() == expected
