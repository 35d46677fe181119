import math

import numpy as np
import pytest

from fedpa.methods import TwoCounters
from fedpa.methods.two_counters import two_counter_scores


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def test_by_hand() -> None:
    # prior (3 + 1) / (8 + 2) = 0.4; item (6 + 10 * 0.4) / (10 + 10) = 0.5; user (1 + 8 * 0.4) / (2 + 8) = 0.42
    score = two_counter_scores([10], [6], [2], [1], 8, 3, item_strength=10, user_strength=8)
    total = logit(0.5) + logit(0.42) - logit(0.4)
    assert score.tolist() == [pytest.approx(1 / (1 + math.exp(-total)))]


def test_what_was_never_seen_adds_nothing() -> None:
    unknown = two_counter_scores([0, 0], [0, 0], [0, 5], [0, 5], [8, 0], [3, 0])
    assert unknown[0] == pytest.approx(0.4)
    # Without a single row the prior is one half, and only the user's rate (5 + 8 / 2) / (5 + 8) is left.
    assert unknown[1] == pytest.approx(9 / 13)


def test_more_clicks_score_higher_and_stay_probabilities() -> None:
    clicks = np.arange(0, 10001, 100)
    scores = two_counter_scores(10**4, clicks, 10**4, clicks, 10**6, 5 * 10**5)
    assert (np.diff(scores) > 0).all()
    assert scores.min() > 0
    assert scores.max() < 1


def test_it_reads_counters_alone() -> None:
    assert TwoCounters.configured("default", {}).inputs == "counters"
