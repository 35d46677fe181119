import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

from fedpa.errors import FedpaError
from fedpa.evaluation.ranking import TopK, ranking_report, top_k

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Pairs = tuple[npt.NDArray[Any], ...]


def brute_force(scores: Floats, k: int, seen: Pairs, positives: Pairs) -> tuple[Ints, dict[str, Any]]:
    """Lists and report by sorting in Python."""
    lists, values, dropped, listed, count = [], [], 0, set(), 0
    for user, line in enumerate(scores.tolist()):
        hidden = {i for r, i in zip(*seen, strict=True) if r == user}
        wanted = {i for r, i in zip(*positives, strict=True) if r == user}
        dropped += len(wanted & hidden)
        wanted -= hidden
        best = sorted((i for i in range(len(line)) if i not in hidden), key=lambda i: (-line[i], i))[:k]
        listed |= set(best)
        lists.append(best + [-1] * (k - len(best)))
        if wanted:
            count += len(wanted)
            gain = sum(1 / math.log2(2 + place) for place, i in enumerate(best) if i in wanted)
            ideal = sum(1 / math.log2(2 + place) for place in range(min(k, len(wanted))))
            hits = len(wanted & set(best))
            values.append((float(hits > 0), gain / ideal, hits / len(wanted)))
    means = np.mean(values, axis=0) if values else [None] * 3
    report = dict(zip((f"hr@{k}", f"ndcg@{k}", f"recall@{k}"), means, strict=True))
    report |= {"users": len(values), "positives": count, "seen_positives": dropped}
    return np.array(lists).reshape(len(scores), k), report | {f"coverage@{k}": len(listed) / scores.shape[1]}


def problem(seed: int, users: int, items: int, levels: int, density: float) -> tuple[Floats, Pairs, Pairs]:
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, levels, (users, items)) / levels
    seen = np.nonzero(rng.random((users, items)) < density)
    positives = np.nonzero(rng.random((users, items)) < 0.15)
    twice = rng.integers(0, max(positives[0].size, 1), positives[0].size)
    positives = tuple(np.concatenate((side, side[twice])) for side in positives)
    return scores, seen, positives


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    users=st.integers(1, 8),
    items=st.integers(1, 20),
    k=st.integers(1, 25),
    levels=st.sampled_from([1, 2, 5, 10**6]),
    density=st.sampled_from([0.0, 0.3, 0.9, 1.0]),
)
def test_equals_brute_force(seed: int, users: int, items: int, k: int, levels: int, density: float) -> None:
    scores, seen, positives = problem(seed, users, items, levels, density)
    lists, expected = brute_force(scores, k, seen, positives)
    ranking = TopK(k, items)
    np.testing.assert_array_equal(ranking.add(torch.tensor(scores), positives, seen), lists)
    np.testing.assert_array_equal(top_k(scores, k, seen), lists)
    report = ranking.report()
    assert report.keys() == expected.keys()
    for name, value in expected.items():
        assert report[name] == (None if value is None else pytest.approx(value, abs=1e-11)), name


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), cut=st.integers(0, 12))
def test_blocks_do_not_matter(seed: int, cut: int) -> None:
    scores, seen, positives = problem(seed, 12, 30, 10, 0.2)
    whole = TopK(5, 30)
    whole.add(scores, positives, seen)
    blocks = TopK(5, 30)
    for first, last in ((cut, 12), (0, cut)):

        def inside(pairs: Pairs, first: int = first, last: int = last) -> Pairs:
            keep = (pairs[0] >= first) & (pairs[0] < last)
            return pairs[0][keep] - first, pairs[1][keep]

        blocks.add(scores[first:last], inside(positives), inside(seen))
    assert blocks.report() == whole.report()


def test_by_hand() -> None:
    # user 0: positives at ranks 1 and 4; user 1: at rank 3; user 2: none in the top 3.
    report = ranking_report([0, 0, 1, 2], [1, 4, 3, 9], 3)
    assert report["hr@3"] == pytest.approx(2 / 3)
    assert report["recall@3"] == pytest.approx((0.5 + 1 + 0) / 3)
    assert report["ndcg@3"] == pytest.approx((1 / (1 + 1 / math.log2(3)) + 0.5 + 0) / 3)
    assert (report["users"], report["positives"]) == (3, 4)


def test_ndcg_equals_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    scores = rng.permuted(np.tile(np.linspace(0, 1, 50), (40, 1)), axis=1)
    relevant = rng.random((40, 50)) < 0.1
    relevant[:, 0] = True
    ranking = TopK(10, 50)
    ranking.add(scores, np.nonzero(relevant))
    assert ranking.report()["ndcg@10"] == pytest.approx(ndcg_score(relevant, scores, k=10), abs=1e-11)


def test_ties_rank_by_item_number() -> None:
    assert top_k(np.zeros((1, 6)), 3, ([0], [1])).tolist() == [[0, 2, 3]]
    ranking = TopK(2, 4)
    ranking.add(np.zeros((2, 4), dtype=np.float32), ([0, 1], [1, 3]))
    assert ranking.report()["hr@2"] == 0.5


def test_tensors_with_a_graph_and_integers() -> None:
    scores = torch.tensor([[0.1, 0.9]], requires_grad=True)
    assert top_k(scores, 1).tolist() == [[1]]
    assert top_k(np.array([[3, 5, 4]]), 2).tolist() == [[1, 2]]


def test_nothing_added() -> None:
    assert TopK(3, 4).report() == {
        "hr@3": None,
        "ndcg@3": None,
        "recall@3": None,
        "users": 0,
        "positives": 0,
        "coverage@3": 0.0,
        "seen_positives": 0,
    }
    assert TopK(3, 4).add(np.zeros((0, 4)), ([], [])).shape == (0, 3)


def test_faulty_input_is_refused() -> None:
    ranking = TopK(1, 3)
    with pytest.raises(FedpaError, match="1 of 3 scores are not finite"):
        ranking.add(np.array([[0.0, np.nan, 1.0]]), ([0], [0]))
    with pytest.raises(FedpaError, match=r"1 of 2 positives pairs are outside .* \(user 0, item 3\)"):
        ranking.add(np.zeros((1, 3)), ([0, 0], [0, 3]))
    with pytest.raises(FedpaError, match="outside"):
        ranking.add(np.zeros((1, 3)), ([0], [0]), ([-1], [0]))
    with pytest.raises(FedpaError, match="have 2 items, expected 3"):
        ranking.add(np.zeros((1, 2)), ([0], [0]))
    with pytest.raises(FedpaError, match="equally long"):
        ranking.add(np.zeros((1, 3)), ([0], [0, 1]))
    with pytest.raises(FedpaError, match=r"\[users, items\]"):
        ranking.add(np.zeros(3), ([0], [0]))
    with pytest.raises(FedpaError, match="at least 1"):
        TopK(0, 3)
    with pytest.raises(FedpaError, match="at least 1"):
        top_k(np.zeros((1, 1)), 0)
    with pytest.raises(FedpaError, match="rank of at least 1"):
        ranking_report([0], [0], 3)
    assert ranking.report()["users"] == 0
