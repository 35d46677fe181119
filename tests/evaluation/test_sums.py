import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpa.errors import FedpaError
from fedpa.evaluation import metrics
from fedpa.evaluation.sums import BINS, ClickSums

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def rows(seed: int, n: int = 400, users: int = 40) -> tuple[Ints, Ints, Floats]:
    rng = np.random.default_rng(seed)
    u = rng.integers(0, users, n)
    p = rng.beta(1, 2, n)
    return u, (rng.random(n) < p).astype(int), p


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), shards=st.integers(1, 12))
def test_any_shards_in_any_order_give_identical_sums(seed: int, shards: int) -> None:
    u, y, s = rows(seed)
    rng = np.random.default_rng(seed)
    home = rng.integers(0, shards, 40)[u]
    parts = []
    for shard in rng.permutation(shards):
        mine = rng.permutation(np.flatnonzero(home == shard))
        parts.append(ClickSums.of(u[mine], y[mine], s[mine]))
    whole = ClickSums.of(u, y, s)
    assert sum(parts, start=ClickSums.zero()) == whole
    assert hash(sum(parts, start=ClickSums.zero())) == hash(whole)
    assert sum(reversed(parts), start=ClickSums.zero()).report() == whole.report()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), levels=st.sampled_from([3, 50, 10**9]))
def test_report_equals_the_metrics(seed: int, levels: int) -> None:
    u, y, s = rows(seed)
    s = np.round(s * levels) / levels
    sums = ClickSums.of(u, y, s)
    report = sums.report()
    assert (report["auc"], report["auc_error"]) == sums.auc()
    gauc = metrics.gauc(u, y, s)
    assert (report["gauc"], report["gauc_users"], report["gauc_rows"]) == gauc
    assert report["logloss"] == metrics.log_loss(y, s)
    assert report["normalised_entropy"] == metrics.normalised_entropy(y, s)
    assert report["calibration_ratio"] == metrics.calibration_ratio(y, s)
    assert (report["rows"], report["users"], report["click_rate"]) == (y.size, np.unique(u).size, y.mean())
    approximate, error = sums.auc()
    exact = metrics.auc(y, s)
    assert approximate is not None and error is not None and exact is not None
    assert abs(approximate - exact) <= error + 1e-12
    assert error < 1e-3 or levels < BINS


def test_histogram_auc_bound_by_hand() -> None:
    # Both rows fall in one bin: the AUC is known to be between 0 and 1.
    sums = ClickSums.of([0, 0], [0, 1], [0.50001, 0.50002])
    assert sums.auc() == (0.5, 0.5)
    assert ClickSums.of([0, 0], [0, 1], [0.5, 0.6]).auc() == (1.0, 0.0)


def test_edges_of_the_histogram() -> None:
    sums = ClickSums.of([0, 0, 1], [0, 1, 1], [0.0, 1.0, 1 - 1e-9])
    assert sums.histogram.shape == (2, BINS)
    assert sums.histogram[0, 0] == 1
    assert sums.histogram[1, BINS - 1] == 2
    assert sums.histogram.sum() == 3


def test_nothing_and_one_class_report_none() -> None:
    none = np.zeros(0)
    assert ClickSums.of(none, none, none) == ClickSums.zero()
    assert ClickSums.zero().report()["logloss"] is None
    report = ClickSums.of([0, 1], [1, 1], [0.5, 0.5]).report()
    assert report["gauc"] is report["auc"] is report["auc_error"] is report["normalised_entropy"] is None
    assert report["logloss"] == pytest.approx(np.log(2))
    assert ClickSums.of([0], [0], [0.5]) != ClickSums.of([0], [1], [0.5])
    assert ClickSums.zero() != 0


def test_scores_must_be_probabilities() -> None:
    with pytest.raises(FedpaError, match="outside"):
        ClickSums.of([0], [1], [1.2])
