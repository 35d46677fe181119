from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpa.comparison.plots import Box, Linear, Log, domain, place_labels, spread


def test_scales() -> None:
    up = Linear(0.0, 10.0, 100.0, 0.0)
    assert [up(value) for value in (0, 5, 10, 12, -1)] == [100, 50, 0, 0, 100]
    assert up.outside(12)
    assert not up.outside(10)
    assert Linear(0.512, 0.561, 0, 1).ticks(5) == [0.52, 0.53, 0.54, 0.55, 0.56]
    assert Linear(-0.061, 0.01, 0, 1).ticks(4) == [-0.06, -0.04, -0.02, 0]
    log = Log(10.0, 1000.0, 0.0, 200.0)
    assert log(100.0) == pytest.approx(100)
    assert log.ticks() == [10, 100, 1000]


def test_what_is_far_off_does_not_press_the_rest_flat() -> None:
    values = [0.5 + k / 1000 for k in range(20)]
    low, high = domain([*values, 9.0], 0.49)
    assert 0.48 < low < 0.49
    assert 0.519 < high < 0.53
    for low, high in (domain([]), domain([0.6]), domain([0.0, 0.0])):
        assert high > low


def test_spread_by_hand() -> None:
    # Those two meet half way, the third is far enough off.
    assert spread([10, 12, 30], 6, 0, 100) == pytest.approx([8, 14, 30])
    assert spread([12, 10], 6, 0, 100) == pytest.approx([14, 8])
    assert spread([1, 1, 1], 10, 0, 100) == pytest.approx([0, 10, 20])
    assert spread([50, 50, 50], 10, 40, 50) == pytest.approx([40, 45, 50])
    assert spread([], 10, 0, 1) == []


@given(st.lists(st.floats(0, 200), min_size=1, max_size=20))
def test_spread_keeps_the_gap_the_order_and_the_bounds(wanted: list[float]) -> None:
    found = spread(wanted, 10, 0, 200)
    gap = min(10, 200 / max(1, len(wanted) - 1))
    assert all(b - a >= gap - 1e-6 for a, b in pairwise(sorted(found)))
    assert min(found) >= -1e-6
    assert max(found) <= 200 + 1e-6
    assert [i for _, i in sorted(zip(wanted, range(len(wanted)), strict=True))] == sorted(
        range(len(found)), key=found.__getitem__
    )


def test_labels_of_one_place_do_not_cover_each_other() -> None:
    points = [(300.0, 200.0)] * 12 + [(310.0, 205.0)] * 6
    frame = Box(0, 0, 600, 400)
    labels = place_labels(points, [(90.0, 12.0)] * len(points), frame)
    boxes = [Box(x, y - 6, x + 90, y + 6) for x, y in labels]
    for k, box in enumerate(boxes):
        assert frame.left <= box.left
        assert box.right <= frame.right
        assert all(box.overlap(other) == 0 for other in boxes[:k])
        assert all(box.overlap(Box(x - 4, y - 4, x + 4, y + 4)) == 0 for x, y in points)
