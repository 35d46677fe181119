import json

import numpy as np
import numpy.typing as npt
import pytest

from fedpa.errors import FedpaError
from fedpa.evaluation import metrics
from fedpa.evaluation.bootstrap import bootstrap_users

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def rows(seed: int = 0, users: int = 120, per_user: int = 8) -> tuple[Ints, Ints, Floats, Floats]:
    rng = np.random.default_rng(seed)
    u = np.repeat(np.arange(users), per_user)
    p = np.round(1 / (1 + np.exp(-(rng.normal(size=users)[u] + rng.normal(size=u.size)))), 2)
    return u, (rng.random(u.size) < p).astype(int), p, np.round(0.5 * p + 0.5 * rng.random(u.size), 2)


def by_copying(u: Ints, y: Ints, s: Floats, b: Floats, draws: int, seed: int) -> Floats:
    """The same draws, with every user's rows copied as often as drawn."""
    names = np.unique(u)
    generator = np.random.Generator(np.random.Philox(seed))
    values = []
    for _ in range(draws):
        picks = names[generator.integers(0, names.size, size=names.size)]
        rows_of = [np.flatnonzero(u == pick) for pick in picks]
        at = np.concatenate(rows_of)
        new = np.repeat(np.arange(picks.size), [len(r) for r in rows_of])
        values.append(
            [
                [metrics.gauc(new, y[at], x[at]).value, metrics.auc(y[at], x[at]), metrics.log_loss(y[at], x[at])]
                for x in (s, b)
            ]
        )
    return np.array(values)


def test_equals_copying_rows() -> None:
    u, y, s, b = rows(users=40)
    result = bootstrap_users(u, y, s, baseline=b, draws=60, seed=3, level=0.9)
    values = by_copying(u, y, s, b, 60, 3)
    observed = np.array([[metrics.gauc(u, y, x).value, metrics.auc(y, x), metrics.log_loss(y, x)] for x in (s, b)])
    for i, name in enumerate(("gauc", "auc", "logloss")):
        low, high = np.quantile(values[:, 0, i], [0.05, 0.95])
        expected = (observed[0, i], low, high, values[:, 0, i].std(ddof=1))
        assert result.intervals[name] == pytest.approx(expected, abs=1e-11)
        gain = values[:, 0, i] - values[:, 1, i]
        low, high = np.quantile(gain, [0.05, 0.95])
        expected = (observed[0, i] - observed[1, i], low, high, gain.std(ddof=1))
        assert result.differences[name] == pytest.approx(expected, abs=1e-11)


def test_row_order_does_not_matter_and_the_seed_does() -> None:
    u, y, s, b = rows()
    order = np.random.default_rng(1).permutation(u.size)
    first = bootstrap_users(u, y, s, baseline=b, draws=50)
    again = bootstrap_users(u[order], y[order], s[order], baseline=b[order], draws=50)
    for name, interval in first.intervals.items():
        assert again.intervals[name] == pytest.approx(interval, abs=1e-12)
        assert again.differences[name] == pytest.approx(first.differences[name], abs=1e-12)
    assert bootstrap_users(u, y, s, draws=50, seed=1).intervals != first.intervals


def test_standard_error_of_a_mean() -> None:
    # One row a user: log-loss is a mean of independent rows, so its standard error is known.
    rng = np.random.default_rng(5)
    s = rng.uniform(0.05, 0.95, 400)
    y = (rng.random(400) < s).astype(int)
    loss = -np.log(np.where(y == 1, s, 1 - s))
    result = bootstrap_users(np.arange(400), y, s, draws=1000)
    assert result.intervals["logloss"].standard_error == pytest.approx(loss.std() / 20, rel=0.1)
    assert result.intervals["gauc"] == (None, None, None, None)


def test_a_model_does_not_differ_from_itself() -> None:
    u, y, s, _ = rows()
    result = bootstrap_users(u, y, s, baseline=s, draws=20)
    assert all(interval == (0, 0, 0, 0) for interval in result.differences.values())


def test_undefined_metrics_and_no_rows() -> None:
    result = bootstrap_users([0, 1], [1, 1], [0.5, 0.5], draws=10)
    assert result.intervals["auc"] == (None, None, None, None)
    assert result.intervals["logloss"].low == pytest.approx(np.log(2))
    none = np.zeros(0)
    assert bootstrap_users(none, none, none, draws=10).intervals["logloss"].value is None
    json.dumps(result.as_dict(), allow_nan=False)


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(FedpaError, match="draws must be at least 2"):
        bootstrap_users([0], [1], [0.5], draws=1)
    with pytest.raises(FedpaError, match="level"):
        bootstrap_users([0], [1], [0.5], level=1.0)


def test_runs_are_drawn_within_users() -> None:
    """Three runs by hand: the same draws of users and runs, averaged."""
    u, y, s, b = rows(users=30)
    runs = np.stack([s, b, (s + b) / 2])
    others = np.stack([b, s, b])
    result = bootstrap_users(u, y, runs, baseline=others, draws=40, seed=2)
    generator = np.random.Generator(np.random.Philox(2))
    values = []
    for _ in range(40):
        picks = generator.integers(0, 30, size=30)
        at = np.concatenate([np.flatnonzero(u == pick) for pick in picks])
        new = np.repeat(np.arange(30), 8)
        drawn = generator.integers(0, 3, size=3)
        values.append([np.mean([metrics.gauc(new, y[at], x[r][at]).value or 0 for r in drawn]) for x in (runs, others)])
    low, high = np.quantile(np.array(values)[:, 0], [0.025, 0.975])
    assert result.intervals["gauc"][1:3] == pytest.approx((low, high), abs=1e-11)
    gain = np.subtract(*np.array(values).T)
    assert result.differences["gauc"].standard_error == pytest.approx(gain.std(ddof=1), abs=1e-11)
    observed = [np.mean([metrics.auc(y, run) or 0 for run in x]) for x in (runs, others)]
    assert result.intervals["auc"].value == pytest.approx(observed[0], abs=1e-12)
    assert result.differences["auc"].value == pytest.approx(observed[0] - observed[1], abs=1e-12)


def test_the_spread_of_runs_widens_the_interval() -> None:
    u, y, s, b = rows(users=400)
    alike = bootstrap_users(u, y, np.stack([s, s, s]), draws=300)
    apart = bootstrap_users(u, y, np.stack([s, b, 1 - s]), draws=300)
    once = bootstrap_users(u, y, s, draws=300)
    assert alike.intervals["auc"].standard_error == pytest.approx(once.intervals["auc"].standard_error, rel=0.2)
    assert (apart.intervals["auc"].standard_error or 0) > 3 * (alike.intervals["auc"].standard_error or 1)


def test_one_baseline_serves_all_runs_and_two_do_not_fit_three() -> None:
    u, y, s, b = rows(users=20)
    shared = bootstrap_users(u, y, np.stack([s, s]), baseline=b, draws=20)
    assert shared.differences["auc"].value == pytest.approx(
        (metrics.auc(y, s) or 0) - (metrics.auc(y, b) or 0), abs=1e-12
    )
    with pytest.raises(FedpaError, match="3 runs and the baseline 2"):
        bootstrap_users(u, y, np.stack([s, s, s]), baseline=np.stack([b, b]), draws=20)
