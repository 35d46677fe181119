"""Chunks, participants and orders of rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpa.federation.schedule import (
    chunks,
    padded_length,
    participants,
    row_block,
    shuffled_rows,
    users_in_whole_vectors,
)

counts = st.lists(st.integers(0, 300), min_size=1, max_size=40)


def test_padding_is_bounded() -> None:
    rows = np.arange(1, 20_000)
    padded = padded_length(rows)
    assert (padded[:8] == rows[:8]).all()
    assert (padded >= rows).all()
    step = np.maximum(1, 2 ** np.ceil(np.log2(rows)) / 8)
    assert (padded - rows < step).all()
    assert ((padded - rows) / rows).max() < 0.25
    assert ((padded - rows) / rows).mean() < 0.1
    assert (np.diff(padded) >= 0).all()
    assert (padded_length(padded) == padded).all()
    assert len(np.unique(padded)) < 8 + 4 * 12
    assert padded_length(np.array([0])) == 1


@settings(deadline=None)
@given(
    counts,
    st.one_of(st.none(), st.integers(1, 64)),
    st.integers(1, 10),
    st.integers(1, 400),
)
def test_every_row_of_every_user_is_trained_on_once(
    rows: list[int], batch_size: int | None, users_per_chunk: int, rows_per_chunk: int
) -> None:
    count = np.array(rows)
    users = np.arange(len(count)) * 3
    begin_of = np.cumsum(count) - count
    plan = chunks(users, count, batch_size=batch_size, users_per_chunk=users_per_chunk, rows_per_chunk=rows_per_chunk)
    met = np.concatenate([chunk.users[: chunk.real] for chunk in plan]) if plan else np.zeros(0, int)
    assert sorted(met) == users[count > 0].tolist()
    for chunk in plan:
        local = chunk.users // 3
        assert chunk.real <= users_per_chunk
        assert chunk.real == 1 or chunk.real * chunk.width <= rows_per_chunk
        assert len(chunk.users) * chunk.width % 32 == 0
        assert 0 <= len(chunk.users) - chunk.real < users_in_whole_vectors(chunk.width) <= 32
        assert set(chunk.users) == set(chunk.users[: chunk.real])
        assert batch_size is None or chunk.width <= batch_size
        seen: list[list[int]] = [[] for _ in local]
        for step in range(chunk.steps):
            positions, real = row_block(chunk, begin_of[local], count[local], step, batch_size)
            assert positions.shape == (len(local), chunk.width)
            assert (real >= 1).all()
            for place, (mine, n) in enumerate(zip(positions, real, strict=True)):
                seen[place] += mine[:n].tolist()
                assert set(mine[n:]) <= set(mine[:n])
        for place, user in enumerate(local):
            assert seen[place] == list(range(begin_of[user], begin_of[user] + count[user]))
            batches = 1 if batch_size is None else -(-count[user] // batch_size)
            assert chunk.steps == batches


@settings(deadline=None)
@given(counts.filter(any), st.integers(0, 2**63 - 1), st.integers(0, 100), st.integers(0, 5))
def test_shuffles_are_permutations_of_a_user_alone(rows: list[int], seed: int, number: int, epoch: int) -> None:
    count = np.array(rows)
    keys = (np.arange(len(count)) * 97 + seed % 1000).astype(np.uint64)
    order = shuffled_rows(seed, number, epoch, keys, count)
    assert order.shape == (len(count), count.max())
    for user, n in enumerate(count):
        mine = order[user, :n]
        assert sorted(mine) == list(range(n))
        if n:
            alone = shuffled_rows(seed, number, epoch, keys[user : user + 1], count[user : user + 1])
            assert (alone[0] == mine).all()


def test_every_round_epoch_user_and_seed_has_its_own_order() -> None:
    keys, count = np.array([5, 6], np.uint64), np.array([50, 50])
    base = shuffled_rows(1, 2, 0, keys, count)
    assert (base == shuffled_rows(1, 2, 0, keys, count)).all()
    assert (base[0] != base[1]).any()
    for other in ((2, 2, 0), (1, 3, 0), (1, 2, 1)):
        assert (shuffled_rows(*other, keys, count)[0] != base[0]).any()


def test_orders_are_even() -> None:
    """Every row comes first as often as any other: chi-squared over 20,000 orders, five standard deviations."""
    users, rows = 20_000, 8
    order = shuffled_rows(0, 1, 0, np.arange(users, dtype=np.uint64), np.full(users, rows))
    for place in (0, rows - 1):
        found = np.bincount(order[:, place], minlength=rows)
        expected = users / rows
        chi = ((found - expected) ** 2 / expected).sum()
        assert chi < (rows - 1) + 5 * np.sqrt(2 * (rows - 1))


@settings(deadline=None)
@given(st.sets(st.integers(0, 199), min_size=1), st.floats(0.05, 0.95), st.integers(0, 50))
def test_taking_part_does_not_depend_on_company(some: set[int], share: float, number: int) -> None:
    keys = (np.arange(200) * 13).astype(np.uint64)
    everyone, few = np.arange(200), np.array(sorted(some))
    among_all = set(participants(3, number, share, everyone, keys))
    assert set(participants(3, number, share, few, keys)) == among_all & some


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_the_share_of_participants(share: float) -> None:
    users = np.arange(20_000)
    keys = users.astype(np.uint64)
    first, second = (participants(0, number, share, users, keys) for number in (1, 2))
    for chosen in (first, second):
        assert len(chosen) / len(users) == pytest.approx(share, abs=5 * np.sqrt(share * (1 - share) / len(users)))
    both = len(np.intersect1d(first, second)) / len(users)
    assert both == pytest.approx(share**2, abs=0.02)


def test_all_take_part_at_share_one() -> None:
    users = np.arange(5)
    assert participants(0, 1, 1.0, users, users.astype(np.uint64)) is users
