"""Parts: whole tie blocks, in order, by the rules."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedpa.data.divide import COLD, OPEN, PRIVATE
from fedpa.data.split import PARTS, Part, cuts_in_time, split, tie_starts

Log = tuple[NDArray[np.uint32], NDArray[np.int64], NDArray[np.bool_], NDArray[np.int8], NDArray[np.bool_]]


@st.composite
def logs(draw: st.DrawFn, sides: tuple[int, ...] = (OPEN, PRIVATE, COLD)) -> Log:
    """Rows of a few users sorted by user, then time, with many ties."""
    times = draw(st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=15), min_size=1, max_size=5))
    user = np.repeat(np.arange(len(times)), [len(each) for each in times]).astype(np.uint32)
    time = np.concatenate([np.sort(each) for each in times]).astype(np.int64)
    random = np.array(draw(st.lists(st.booleans(), min_size=len(user), max_size=len(user))))
    side = np.array(draw(st.lists(st.sampled_from(sides), min_size=len(times), max_size=len(times))), np.int8)
    held_out = np.array(draw(st.lists(st.booleans(), min_size=len(times), max_size=len(times))))
    return user, time, random, side, held_out


def one_user(times: list[int], side: int = PRIVATE, cuts: tuple[int, int] | None = None) -> list[str]:
    n = len(times)
    part = split(
        np.zeros(n, np.uint32),
        np.array(times, np.int64),
        np.zeros(n, np.bool_),
        np.array([side], np.int8),
        np.zeros(1, np.bool_),
        cuts,
    )
    return [PARTS[code] for code in part]


@pytest.mark.parametrize(
    ("n", "train", "val", "test"), [(1, 1, 0, 0), (4, 4, 0, 0), (5, 3, 1, 1), (6, 4, 1, 1), (9, 6, 2, 1), (10, 6, 2, 2)]
)
def test_sixty_twenty_twenty(n: int, train: int, val: int, test: int) -> None:
    assert one_user(list(range(n))) == ["train"] * train + ["val"] * val + ["test"] * test


def test_a_cut_moves_behind_rows_at_one_time() -> None:
    assert one_user([1, 2, 3, 3, 4]) == ["train"] * 4 + ["test"]
    assert one_user([1, 2, 3, 4, 4]) == ["train"] * 3 + ["val"] * 2
    assert one_user([1] * 10) == ["train"] * 10


def test_a_cold_user_supports_with_five_rows() -> None:
    assert one_user(list(range(7)), COLD) == ["support"] * 5 + ["cold_test"] * 2
    assert one_user([1, 2, 3, 4, 5, 5, 6], COLD) == ["support"] * 6 + ["cold_test"]
    assert one_user(list(range(5)), COLD) == ["unused"] * 5
    assert one_user([1, 2, 3, 4, 5, 5], COLD) == ["unused"] * 6


def test_global_time_cuts_all_users_at_the_same_instants() -> None:
    times = [1, 2, 3, 4, 5]
    assert one_user(times, PRIVATE, (3, 5)) == ["train", "train", "val", "val", "test"]
    assert one_user(times, OPEN, (3, 5)) == ["foundation", "foundation", "unused", "unused", "unused"]
    assert one_user(list(range(1, 9)), COLD, (1, 2)) == ["unused"] + ["support"] * 5 + ["cold_test"] * 2


def test_random_rows_are_private_users_test_rows() -> None:
    user = np.array([0, 1, 1, 2], np.uint32)
    time = np.array([1, 1, 9, 1], np.int64)
    side = np.array([OPEN, PRIVATE, COLD], np.int8)
    every, nobody = np.ones(4, np.bool_), np.zeros(3, np.bool_)
    assert split(user, time, every, side, nobody)[1:].tolist() == [Part.UNBIASED, Part.UNBIASED, Part.UNUSED]
    assert split(user, time, every, side, nobody, (3, 5))[1:3].tolist() == [Part.UNUSED, Part.UNBIASED]


def test_cuts_lie_at_three_and_four_fifths_of_the_rows() -> None:
    assert cuts_in_time(np.array([9, 0, 8, 1, 7, 2, 6, 3, 5, 4], np.int64)) == (6, 8)


@settings(max_examples=40, deadline=None)
@given(logs())
def test_tie_starts_is_the_first_row_with_the_same_keys(log: Log) -> None:
    user, time, *_ = log
    rows = list(zip(user.tolist(), time.tolist(), strict=True))
    assert tie_starts(user, time).tolist() == [rows.index(row) for row in rows]


@settings(max_examples=40, deadline=None)
@given(logs(), st.one_of(st.none(), st.tuples(st.integers(0, 6), st.integers(7, 12))))
def test_parts_are_in_order_and_ties_stay_whole(log: Log, cuts: tuple[int, int] | None) -> None:
    user, time, random, side, held_out = log
    part = split(user, time, random, side, held_out, cuts)
    chains = [(Part.TRAIN, Part.VAL, Part.TEST), (Part.SUPPORT, Part.COLD_TEST)]
    for who in range(len(side)):
        mine = (user == who) & ~random
        for chain in chains:
            spans = [time[mine & (part == code)] for code in chain if (mine & (part == code)).any()]
            for earlier, later in pairwise(spans):
                assert earlier.max() < later.min()
        if side[who] != COLD or cuts is None:
            for instant in np.unique(time[mine]):
                assert len(np.unique(part[mine & (time == instant)])) == 1


@settings(max_examples=40, deadline=None)
@given(logs(), st.one_of(st.none(), st.tuples(st.integers(0, 6), st.integers(7, 12))))
def test_every_row_has_a_part_that_fits_its_user(log: Log, cuts: tuple[int, int] | None) -> None:
    user, time, random, side, held_out = log
    part = split(user, time, random, side, held_out, cuts)
    fitting = {
        OPEN: {Part.FOUNDATION, Part.FOUNDATION_VAL, Part.UNUSED},
        PRIVATE: {Part.TRAIN, Part.VAL, Part.TEST},
        COLD: {Part.SUPPORT, Part.COLD_TEST, Part.UNUSED},
    }
    for who, code, exposed in zip(user, part, random, strict=True):
        if not exposed:
            assert code in fitting[side[who]]
            assert code != Part.FOUNDATION or not held_out[who]
            assert code != Part.FOUNDATION_VAL or held_out[who]
    if cuts is not None:
        learned = np.isin(part, [Part.FOUNDATION, Part.FOUNDATION_VAL, Part.TRAIN])
        judged = np.isin(part, [Part.TEST, Part.COLD_TEST, Part.UNBIASED])
        assert (time[learned] < cuts[0]).all()
        assert (time[judged] >= cuts[1]).all()
