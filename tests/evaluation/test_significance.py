from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpa.errors import FedpaError
from fedpa.evaluation import metrics
from fedpa.evaluation.bootstrap import bootstrap_users
from fedpa.evaluation.significance import compare_clicks, compare_users, holm, least_p

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def rows(users: int = 60, per_user: int = 6) -> tuple[Ints, Ints, Floats]:
    """Users, labels and one run's probabilities, many of them tied."""
    rng = np.random.default_rng(0)
    u = np.repeat(np.arange(users), per_user)
    p = np.round(1 / (1 + np.exp(-(rng.normal(size=users)[u] + rng.normal(size=u.size)))), 2)
    return u, (rng.random(u.size) < p).astype(np.int64), p


def noisy(p: Floats, seed: int, runs: int, noise: float = 0.3) -> Floats:
    found: Floats = (1 - noise) * p + noise * np.random.default_rng(seed).random((runs, p.size))
    return found


def four(u: Ints, y: Ints, s: Floats) -> list[float]:
    found = (metrics.gauc(u, y, s).value, metrics.auc(y, s), metrics.log_loss(y, s), metrics.calibration_ratio(y, s))
    return [np.nan if value is None else value for value in found]


def test_holm_by_hand() -> None:
    # 4 * 0.01, 3 * 0.02 twice over (0.06, and 2 * 0.025 is raised to it), 1 * 0.5.
    assert holm([0.5, 0.01, 0.025, 0.02]) == pytest.approx([0.5, 0.04, 0.06, 0.06])
    assert holm([0.4, None, 0.6]) == pytest.approx([0.8, None, 0.8])
    assert holm([1.0, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_keeps_the_order_and_is_never_below_p_or_above_bonferroni(p: list[float]) -> None:
    adjusted = holm(p)
    pairs = sorted(zip(p, adjusted, strict=True), key=lambda pair: (pair[0], pair[1] or 0))
    assert [one for _, one in pairs] == sorted(one or 0 for one in adjusted)
    assert all(value <= (one or 0) <= min(1, len(p) * value) or value == one for value, one in pairs)


def test_least_p() -> None:
    # One draw of 999 and the data themselves on the rarer side: 2 * 1 / 1000.
    assert least_p(999, 1) == pytest.approx(0.002)
    assert least_p(999, 30) == pytest.approx(0.06)
    assert least_p(1, 40) == 1


def test_one_method_has_the_intervals_of_bootstrap_users() -> None:
    u, y, p = rows()
    several, once = noisy(p, 1, 3), p
    found = compare_clicks(u, y, {"a": several, "b": once}, references=["b"], draws=50, seed=4, level=0.9)
    alone = bootstrap_users(u, y, several, baseline=once, draws=50, seed=4, level=0.9)
    for name, interval in alone.intervals.items():
        assert found.intervals["a"][name] == pytest.approx(interval, abs=1e-12)
        assert found.differences["b"]["a"][name][:4] == pytest.approx(alone.differences[name], abs=1e-12)
    assert found.by_seed["a"]["auc"] == [metrics.auc(y, run) for run in several]
    assert found.intervals["a"]["auc"].value == pytest.approx(np.mean([metrics.auc(y, run) or 0 for run in several]))


def test_every_draw_by_copying_rows() -> None:
    """Users and runs drawn by hand; a method of two runs draws its own after those of the methods of three."""
    u, y, p = rows(users=25)
    scores = {"three": noisy(p, 1, 3), "also three": noisy(p, 2, 3), "two": noisy(p, 3, 2), "one": p[None]}
    generator = np.random.Generator(np.random.Philox(7))
    values: dict[str, list[list[float]]] = {name: [] for name in scores}
    for _ in range(30):
        at = np.concatenate([np.flatnonzero(u == pick) for pick in generator.integers(0, 25, size=25)])
        new = np.repeat(np.arange(25), 6)
        picks: dict[int, Ints] = {
            3: generator.integers(0, 3, size=3),
            2: generator.integers(0, 2, size=2),
            1: np.zeros(1, int),
        }
        for name, runs in scores.items():
            each = [four(new, y[at], runs[pick][at]) for pick in picks[len(runs)]]
            values[name].append([sum(column) / len(each) for column in zip(*each, strict=True)])
    found = compare_clicks(u, y, scores, references=["three", "one"], draws=30, seed=7)
    for i, metric in enumerate(("gauc", "auc", "logloss", "calibration_ratio")):
        drawn = {name: np.array(those)[:, i] for name, those in values.items()}
        for name in scores:
            low, high = np.quantile(drawn[name], [0.025, 0.975])
            assert found.intervals[name][metric][1:3] == pytest.approx((low, high), abs=1e-11)
        for reference, others in found.differences.items():
            assert set(others) == set(scores) - {reference}
            for name, difference in others.items():
                gain = drawn[name] - drawn[reference]
                low, high = np.quantile(gain, [0.025, 0.975])
                p_value = min(1, 2 * (min((gain <= 0).sum(), (gain >= 0).sum()) + 1) / 31)
                assert difference[metric][1:3] == pytest.approx((low, high), abs=1e-11)
                assert difference[metric].p == pytest.approx(p_value)


def test_a_method_does_not_differ_from_itself() -> None:
    u, y, p = rows()
    runs = noisy(p, 1, 3)
    found = compare_clicks(u, y, {"a": runs, "same": runs.copy(), "b": noisy(p, 2, 3)}, references=["a"], draws=40)
    for difference in found.differences["a"]["same"].values():
        assert difference == (0, 0, 0, 0, 1, 1)
    assert found.differences["a"]["b"]["auc"].value != 0


def test_p_values_are_corrected_over_the_methods_of_one_metric() -> None:
    u, y, p = rows()
    scores = {"a": p, **{f"m{i}": noisy(p, i, 1, noise) for i, noise in enumerate((0.9, 0.1, 0.2, 0.4))}}
    found = compare_clicks(u, y, scores, references=["a"], draws=199)
    for metric in ("gauc", "auc", "logloss", "calibration_ratio"):
        those = [found.differences["a"][name][metric] for name in scores if name != "a"]
        assert [one.p_holm for one in those] == holm([one.p for one in those])
    # No draw helps noise of nine parts in ten: the rarer side has none but the data.
    assert found.differences["a"]["m0"]["auc"].p == pytest.approx(2 / 200)
    assert found.differences["a"]["m0"]["auc"].p_holm == pytest.approx(least_p(199, 4))


def test_pairing_narrows_a_difference() -> None:
    u, y, p = rows(users=300)
    found = compare_clicks(u, y, {"a": p, "b": noisy(p, 1, 1, 0.02)}, references=["a"], draws=100)
    assert (found.differences["a"]["b"]["auc"].standard_error or 1) < 0.2 * (
        found.intervals["a"]["auc"].standard_error or 0
    )


def test_large_numbers_of_pairs_do_not_overflow() -> None:
    """A click above every other: every one of more than 2^31 pairs is won."""
    y = np.repeat([0, 1], 50_000)
    found = compare_clicks(np.arange(y.size), y, {"a": np.linspace(0, 1, y.size), "b": 0.9 * y}, draws=3)
    assert found.intervals["a"]["auc"] == (1, 1, 1, 0)
    assert found.intervals["b"]["auc"] == (1, 1, 1, 0)


def test_means_over_users() -> None:
    rng = np.random.default_rng(3)
    hr = (rng.random((2, 500)) < 0.3).astype(float)
    base = (rng.random(500) < 0.25).astype(float)
    values = {"a": {"hr": hr, "ndcg": hr / 2}, "base": {"hr": base, "ndcg": base / 2}}
    found = compare_users(values, references=["base"], draws=500)
    assert found.users == 500
    assert found.by_seed["a"]["hr"] == pytest.approx(hr.mean(axis=1).tolist())
    assert found.intervals["base"]["hr"].value == pytest.approx(base.mean())
    # The standard error of a mean of independent users is known.
    assert found.intervals["base"]["hr"].standard_error == pytest.approx(base.std() / np.sqrt(500), rel=0.15)
    half, whole = found.differences["base"]["a"]["ndcg"], found.differences["base"]["a"]["hr"]
    assert half[:4] == pytest.approx([one / 2 for one in whole[:4] if one is not None])
    assert half.p == whole.p


def test_undefined_metrics_and_no_rows() -> None:
    found = compare_clicks([0, 1], [1, 1], {"a": [0.5, 0.5], "b": [0.4, 0.5]}, references=["a"], draws=10)
    assert found.intervals["a"]["auc"] == (None, None, None, None)
    assert found.differences["a"]["b"]["auc"] == (None, None, None, None, None, None)
    assert found.by_seed["a"]["gauc"] == [None]
    assert found.intervals["a"]["logloss"].low == pytest.approx(np.log(2))
    none = np.zeros(0)
    assert compare_clicks(none, none, {"a": none}, draws=5).intervals["a"]["logloss"].value is None
    assert compare_clicks([0], [1], {}, draws=5).intervals == {}
    assert compare_users({"a": {"hr": none}}, draws=5).intervals["a"]["hr"].value is None


def test_mistakes_are_named() -> None:
    with pytest.raises(FedpaError, match="references \\['c'\\]: not among the methods \\['a'\\]"):
        compare_clicks([0], [1], {"a": [0.5]}, references=["c"])
    with pytest.raises(FedpaError, match="draws must be at least 2"):
        compare_clicks([0], [1], {"a": [0.5]}, draws=1)
    with pytest.raises(FedpaError, match=r"'a'.*no run"):
        compare_clicks([0], [1], {"a": np.zeros((0, 1))})
    with pytest.raises(FedpaError, match="method b: has values of \\['ndcg'\\], expected \\['hr'\\]"):
        compare_users({"a": {"hr": [1]}, "b": {"ndcg": [1]}})
    with pytest.raises(FedpaError, match=r"different numbers of users: \{'a': 1, 'b': 2\}"):
        compare_users({"a": {"hr": [1]}, "b": {"hr": [1, 0]}})
    with pytest.raises(FedpaError, match="method a: some values are not finite"):
        compare_users({"a": {"hr": [np.nan]}})
    with pytest.raises(FedpaError, match="shapes"):
        compare_users({"a": {"hr": [1], "ndcg": [1, 1]}})
