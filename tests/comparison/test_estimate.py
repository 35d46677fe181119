"""Time that is left, from a timed round and from what has finished."""

from __future__ import annotations

import pytest

from fedpa.comparison.cells import Cell
from fedpa.comparison.estimate import Estimate, in_words, makespan
from fedpa.comparison.measure import best_validation, plain, rounds_to_99

SETTINGS = {"rounds": 30, "patience": 0, "epochs": 1, "batch_size": 1024}


def test_more_work_takes_longer_until_it_is_known() -> None:
    estimate = Estimate({"click": {"epoch": 2.0, "train": 3.0, "score": 1.0}})
    cell, other = Cell("click", "fedpa", 0), Cell("click", "fedpa+reference", 0)
    long = estimate.cell(cell, SETTINGS)
    assert long > 30 * (3 + 1)
    assert estimate.cell(cell, {**SETTINGS, "rounds": 15}) < long < estimate.cell(cell, {**SETTINGS, "epochs": 2})
    assert estimate.cell(Cell("click", "two-counters", 0), SETTINGS) < 10
    estimate.learn(cell, SETTINGS, long / 2)
    estimate.learn(cell._replace(seed=1), SETTINGS, long / 4)
    assert estimate.cell(cell._replace(seed=2), SETTINGS) == pytest.approx(0.375 * long)
    assert estimate.cell(other, SETTINGS) == pytest.approx(0.375 * long)


@pytest.mark.parametrize(
    ("seconds", "jobs", "expected"), [([], 2, 0), ([4, 3, 2, 1], 1, 10), ([2, 3, 4, 1], 2, 5), ([9, 1, 1], 2, 9)]
)
def test_makespan(seconds: list[float], jobs: int, expected: float) -> None:
    assert makespan(seconds, jobs) == expected


def test_words() -> None:
    assert [in_words(s) for s in (0.4, 89, 600, 11100)] == ["0 s", "89 s", "10 min", "3 h 5 min"]


def line(number: int, auc: float | None, gauc: float | None) -> dict[str, object]:
    return {"round": number, "val": {"auc": auc, "gauc": gauc}}


def test_rounds_to_99_percent_of_the_best_validation_value() -> None:
    history = [line(0, 0.5, 0.5), line(1, 0.7, None), line(2, 0.6, 0.586), line(3, 0.6, 0.59), line(4, 0.6, 0.6)]
    assert best_validation(history) == pytest.approx(0.6)
    assert rounds_to_99(history) == 3  # 0.593 is below 0.594, 0.595 is not.
    assert rounds_to_99(history[:1]) is None
    assert best_validation([line(0, None, 0.5)]) is None


def test_plain_numbers() -> None:
    import numpy as np

    assert plain({1: (np.float32(0.5), np.arange(2)), "nan": float("nan"), "no": np.inf}) == {
        "1": [0.5, [0, 1]], "nan": None, "no": None,
    }  # fmt: skip
