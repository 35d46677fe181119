import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss as sklearn_log_loss
from sklearn.metrics import roc_auc_score

from fedpa.errors import FedpaError
from fedpa.evaluation import metrics

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


# users a and b have both classes, c has none; worked by hand below.
USERS = np.array(["b", "a", "a", "c", "b", "a", "b", "b", "c"])
LABELS = np.array([1, 0, 1, 1, 0, 1, 0, 1, 1])
SCORES = np.array([0.9, 0.4, 0.4, 0.1, 0.2, 0.8, 0.6, 0.5, 0.7])
# a: clicks 0.4 and 0.8, other 0.4: (1/2 + 1) / 2 = 0.75
# b: clicks 0.9 and 0.5, others 0.2 and 0.6: (2 + 1) / 4 = 0.75


def rows(
    draw_seed: int, n: int, users: int, levels: int, kind: type[np.float32] | type[np.float64] = np.float64
) -> tuple[Ints, Ints, Floats]:
    rng = np.random.default_rng(draw_seed)
    scores = rng.integers(0, levels, n) / levels if levels else rng.random(n)
    return rng.integers(0, users, n), rng.integers(0, 2, n), scores.astype(kind)


def slow_gauc(users: Ints, labels: Ints, scores: Floats) -> tuple[float | None, int, int]:
    total, weight, count = 0.0, 0, 0
    for user in np.unique(users):
        mine = users == user
        if 0 < labels[mine].sum() < mine.sum():
            total += roc_auc_score(labels[mine], scores[mine]) * mine.sum()
            weight += int(mine.sum())
            count += 1
    return (total / weight if weight else None), count, weight


def test_by_hand() -> None:
    tally = metrics.user_tally(USERS, LABELS, SCORES)
    assert tally.users.tolist() == ["a", "b", "c"]
    assert tally.clicks.tolist() == [2, 2, 2]
    assert tally.others.tolist() == [1, 2, 0]
    assert tally.wins.tolist() == [3, 6, 0]
    users, value, user_rows = metrics.user_auc(USERS, LABELS, SCORES)
    assert (users.tolist(), value.tolist(), user_rows.tolist()) == (["a", "b"], [0.75, 0.75], [3, 4])
    assert metrics.gauc(USERS, LABELS, SCORES) == (0.75, 2, 7)


def test_gauc_weighs_users_by_all_their_rows() -> None:
    # user 0: 2 rows, AUC 0; user 1: 3 rows, AUC 1; user 2: one class.
    value = metrics.gauc([0, 0, 1, 1, 1, 2, 2], [1, 0, 1, 0, 0, 1, 1], [0.1, 0.2, 0.9, 0.3, 0.4, 0.5, 0.6])
    assert value == (3 / 5, 2, 5)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(1, 60),
    users=st.integers(1, 8),
    levels=st.sampled_from([0, 1, 3, 7]),
    kind=st.sampled_from([np.float32, np.float64]),
    scale=st.sampled_from([1.0, -1.0, 1e300, 1e-40]),
    ids=st.sampled_from(["int", "sorted", "wide", "text"]),
)
def test_aucs_equal_scikit_learn(
    seed: int, n: int, users: int, levels: int, kind: type[np.float32] | type[np.float64], scale: float, ids: str
) -> None:
    u, y, s = rows(seed, n, users, levels, kind)
    with np.errstate(all="ignore"):
        s = s * kind(scale) if kind is np.float64 or abs(scale) < 1e30 else s - kind(0.5)
    if ids == "sorted":
        u = np.sort(u)
    elif ids == "wide":
        u = u * 10**17 - 3 * 10**17
    elif ids == "text":
        u = np.array([f"user {i}" for i in u])
    pooled = metrics.auc(y, s)
    if 0 < y.sum() < n:
        assert pooled == pytest.approx(roc_auc_score(y, s), abs=1e-12)
    else:
        assert pooled is None
    expected, count, weight = slow_gauc(u, y, s)
    got = metrics.gauc(u, y, s)
    assert (got.users, got.rows) == (count, weight)
    assert got.value == (None if expected is None else pytest.approx(expected, abs=1e-12))


def test_negative_zero_ties_with_zero() -> None:
    for kind in (np.float32, np.float64):
        s = np.array([-0.0, 0.0, 1e-320, 0.5], dtype=np.float64).astype(kind)
        assert metrics.auc([1, 0, 1, 1], s) == pytest.approx(roc_auc_score([1, 0, 1, 1], s))
    assert metrics.auc([1, 0], [-0.0, 0.0]) == 0.5
    assert metrics.auc([0, 1], np.array([-0.0, 0.0]) * 1e-200) == 0.5


def test_scores_that_single_precision_would_tie_are_told_apart() -> None:
    s = np.array([0.5, 0.5 + 1e-12])
    assert metrics.auc([0, 1], s) == 1.0
    assert metrics.auc([0, 1], s - 1) == 1.0
    assert metrics.gauc([7, 7, 8], [0, 1, 1], np.append(s, 0.1)).value == 1.0


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_row_order_does_not_matter(seed: int) -> None:
    u, y, s = rows(seed, 200, 30, 0)
    b = np.random.default_rng(seed + 1).random(200)
    order = np.random.default_rng(seed + 2).permutation(200)
    for metric in (metrics.log_loss, metrics.normalised_entropy, metrics.calibration_ratio, metrics.auc):
        assert metric(y, s) == metric(y[order], s[order])
    assert metrics.gauc(u, y, s) == metrics.gauc(u[order], y[order], s[order])
    for compare in (metrics.worse_off_share, metrics.worst_tenth_lift):
        assert compare(u, y, s, b) == compare(u[order], y[order], s[order], b[order])
    by_loss = metrics.worse_off_share(u, y, s, b, by="log_loss")
    assert by_loss == metrics.worse_off_share(u[order], y[order], s[order], b[order], by="log_loss")


def test_log_loss_equals_scikit_learn_and_clips() -> None:
    _, y, s = rows(3, 5000, 1, 0)
    assert metrics.log_loss(y, s) == pytest.approx(sklearn_log_loss(y, s), abs=1e-12)
    assert metrics.log_loss([1], [0.0]) == pytest.approx(-np.log(1e-7))
    assert metrics.log_loss([0], [1.0]) == pytest.approx(-np.log(1e-7), rel=1e-8)
    assert metrics.log_loss([1, 0], [1.0, 0.0]) == pytest.approx(1e-7, rel=1e-4)


def test_normalised_entropy_and_calibration_by_hand() -> None:
    y = [1, 0, 0, 0]
    assert metrics.normalised_entropy(y, [0.25] * 4) == pytest.approx(1)
    # log-loss ln 2 against the entropy of 1/4
    entropy = -(0.25 * np.log(0.25) + 0.75 * np.log(0.75))
    assert metrics.normalised_entropy(y, [0.5] * 4) == pytest.approx(np.log(2) / entropy)
    assert metrics.calibration_ratio(y, [0.5] * 4) == 2.0
    assert metrics.calibration_ratio([0, 0], [0.5, 0.5]) is None


def test_worse_off_and_worst_tenth_by_hand() -> None:
    # 11 users of one click and one other; user 0 falls from 1 to 0, user 1 from 1 to 1/2, the others gain 1/2.
    u = np.repeat(np.arange(11), 2)
    y = np.tile([1, 0], 11)
    base = np.tile([0.5, 0.5], 11)
    base[:4] = [0.8, 0.2, 0.8, 0.2]
    s = np.tile([0.6, 0.4], 11)
    s[:4] = [0.3, 0.7, 0.5, 0.5]
    assert metrics.worse_off_share(u, y, s, base) == 2 / 11
    assert metrics.worse_off_share(u, y, s, base, by="log_loss") == 2 / 11
    assert metrics.worst_tenth_lift(u, y, s, base) == (-1 - 0.5) / 2  # a tenth of 11, rounded up, is 2
    assert metrics.worse_off_share(u, y, s, s) == 0
    assert metrics.worst_tenth_lift(u, y, s, s) == 0


def test_undefined_is_none() -> None:
    none = np.zeros(0)
    assert metrics.auc(none, none) is None
    assert metrics.auc([1, 1], [0.1, 0.2]) is None
    assert metrics.gauc(none, none, none) == (None, 0, 0)
    assert metrics.gauc([0, 1], [0, 1], [0.1, 0.2]) == (None, 0, 0)
    assert metrics.log_loss(none, none) is None
    assert metrics.normalised_entropy([1, 1], [0.5, 0.5]) is None
    assert metrics.worse_off_share([0, 1], [0, 1], [0.1, 0.2], [0.1, 0.2]) is None
    assert metrics.worse_off_share(none, none, none, none, by="log_loss") is None
    assert metrics.worst_tenth_lift([0, 1], [0, 1], [0.1, 0.2], [0.1, 0.2]) is None


def test_faulty_rows_are_counted() -> None:
    with pytest.raises(FedpaError, match=r"2 of 3 scores are not finite \(1 NaN\)"):
        metrics.auc([0, 1, 1], [np.nan, np.inf, 0.5])
    with pytest.raises(FedpaError, match=r"1 of 2 scores are outside \[0, 1\]"):
        metrics.log_loss([0, 1], [0.5, 1.5])
    with pytest.raises(FedpaError, match="2 of 3 labels are neither 0 nor 1"):
        metrics.auc([0, 2, np.nan], [0.1, 0.2, 0.3])
    with pytest.raises(FedpaError, match="equally long"):
        metrics.gauc([0, 0, 0], [0, 1], [0.1, 0.2])


def test_booleans_and_unsigned_users() -> None:
    u = np.array([3, 1, 3, 1], dtype=np.uint32)
    assert metrics.gauc(u, np.array([True, False, False, True]), [0.9, 0.1, 0.2, 0.3]) == (1.0, 2, 4)


def test_small_integer_ids_over_their_whole_range() -> None:
    u = np.array([100, -100, 100, -100], dtype=np.int8)
    assert metrics.user_auc(u, [1, 0, 0, 1], [0.9, 0.1, 0.2, 0.3]).users.tolist() == [-100, 100]


def test_fixed_sums_do_not_overflow() -> None:
    values = np.array([2.0**49, 2.0**49, 2.0**-40, -3.0, 2.0**41])
    assert metrics.fixed_sum(values) == (1 << 90) + (1 << 81) - 3 * (1 << 40) + 1
