"""Causal counts against counting one row at a time."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedpa.data.divide import COLD, OPEN, PRIVATE
from fedpa.data.split import Part, split
from fedpa.data.statistics import COUNTS, Counted, causal_counts, counts_at, smoothed_rate

Log = dict[str, NDArray[Any]]

STOPS = {
    Part.VAL: {Part.TRAIN},
    Part.TEST: {Part.TRAIN, Part.VAL},
    Part.UNBIASED: {Part.TRAIN, Part.VAL},
    Part.COLD_TEST: set(),
}


@st.composite
def logs(draw: st.DrawFn, every: tuple[tuple[int, int] | None, ...] = (None, (4, 7))) -> Log:
    """Rows with parts as `split` gives them."""
    times = draw(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=12), min_size=1, max_size=4))
    user = np.repeat(np.arange(len(times)), [len(each) for each in times]).astype(np.uint32)
    n = len(user)
    time = np.concatenate([np.sort(each) for each in times]).astype(np.int64)
    item = np.array(draw(st.lists(st.integers(0, 2), min_size=n, max_size=n)), np.uint32)
    label = np.array(draw(st.lists(st.integers(0, 1), min_size=n, max_size=n)), np.int8)
    random = np.array(draw(st.lists(st.sampled_from([False, False, True]), min_size=n, max_size=n)))
    sides = st.lists(st.sampled_from([OPEN, PRIVATE, COLD]), min_size=len(times), max_size=len(times))
    side = np.array(draw(sides), np.int8)
    held_out = np.zeros(len(times), np.bool_)
    held_out[0] = True
    cuts = draw(st.sampled_from(every))
    part = split(user, time, random & (side[user] == PRIVATE), side, held_out, cuts)
    return {"user": user, "item": item, "time": time, "label": label, "part": part}


def brute_force(log: Log) -> dict[str, list[int]]:
    counts: dict[str, list[int]] = {name: [] for name in COUNTS}
    rows = list(zip(*(log[name].tolist() for name in ("user", "item", "time", "label", "part")), strict=True))
    for user, item, time, _, part in rows:
        earlier = [row for row in rows if row[2] < time]
        opened = [row for row in earlier if row[4] in {Part.FOUNDATION, Part.FOUNDATION_VAL}]
        shown = [row for row in opened if row[1] == item]
        known = STOPS.get(Part(part), set(Part) - {Part.UNBIASED, Part.UNUSED})
        own = [row for row in earlier if row[0] == user and row[4] in known]
        for noun, some in (("item", shown), ("open", opened), ("user", own)):
            counts[f"{noun}_views"].append(len(some))
            counts[f"{noun}_clicks"].append(sum(row[3] for row in some))
    return counts


@settings(max_examples=40, deadline=None)
@given(logs())
def test_counts_equal_counting_one_row_at_a_time(log: Log) -> None:
    found = {name: values.tolist() for name, values in causal_counts(**log).items()}
    assert found == brute_force(log)


@settings(max_examples=40, deadline=None)
@given(logs(), st.integers(0, 9), st.data())
def test_the_future_changes_nothing(log: Log, now: int, data: st.DataObject) -> None:
    later, after_now = log["time"] >= now, log["time"] > now
    n = len(later)
    labels = data.draw(st.lists(st.integers(0, 1), min_size=n, max_size=n))
    items = data.draw(st.lists(st.integers(0, 2), min_size=n, max_size=n))
    changed = log | {
        "label": np.where(later, labels, log["label"]).astype(np.int8),
        "item": np.where(after_now, items, log["item"]).astype(np.uint32),
    }
    before, after = causal_counts(**log), causal_counts(**changed)
    for name in COUNTS:
        assert (before[name][~after_now] == after[name][~after_now]).all()


@settings(max_examples=40, deadline=None)
@given(logs())
def test_labels_of_test_rows_are_read_nowhere(log: Log) -> None:
    tested = np.isin(log["part"], [Part.TEST, Part.COLD_TEST, Part.UNBIASED])
    changed = log | {"label": np.where(tested, 1 - log["label"], log["label"]).astype(np.int8)}
    before, after = causal_counts(**log), causal_counts(**changed)
    assert all((before[name] == after[name]).all() for name in COUNTS)


@pytest.mark.parametrize("cuts", [None, (4, 7)])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_counts_at_a_row_equal_the_counts_of_that_row(cuts: tuple[int, int] | None, data: st.DataObject) -> None:
    log = data.draw(logs((cuts,)))
    shown = log["part"] != Part.UNBIASED
    names = ("user", "item", "time", "label", "part")
    counted = Counted(*(log[name][shown] == 1 if name == "label" else log[name][shown] for name in names))
    # Without cuts the own counts of several judged rows are frozen at the first of them, which no row says of itself.
    alike = [Part.FOUNDATION, Part.FOUNDATION_VAL, Part.TRAIN, Part.SUPPORT]
    alike += [Part.VAL, Part.TEST] if cuts is not None else []
    order = data.draw(st.permutations(np.flatnonzero(np.isin(log["part"], alike)).tolist()))
    user, item, time, part = (log[name][order] for name in ("user", "item", "time", "part"))
    found = counts_at(counted, user, item, time, part, cuts)
    expected = causal_counts(**log)
    assert {name: values.tolist() for name, values in found.items()} == {
        name: values[order].tolist() for name, values in expected.items()
    }


def test_no_rows_have_no_counts() -> None:
    none = {"user": np.uint32, "item": np.uint32, "time": np.int64, "label": np.int8, "part": np.uint8}
    counts = causal_counts(**{name: np.zeros(0, dtype) for name, dtype in none.items()})
    assert all(len(values) == 0 for values in counts.values())


def test_a_rate_starts_at_the_prior_and_forgets_it() -> None:
    clicks, views = np.array([0, 10, 1000]), np.array([0, 20, 1000])
    rate = smoothed_rate(clicks, views, np.array([0, 29, 29]), np.array([0, 98, 98]), 20.0)
    assert rate.tolist() == pytest.approx([0.5, (10 + 6) / 40, (1000 + 6) / 1020])
