import io
import json
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from rich.console import Console

from fedpa.errors import FedpaError
from fedpa.evaluation import metrics
from fedpa.evaluation.report import click_report, comparison_table, markdown_table

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def rows(seed: int = 0) -> tuple[Ints, Ints, Floats, Floats]:
    rng = np.random.default_rng(seed)
    u = np.repeat(np.arange(60), 10)
    s = rng.random(600)
    return u, (rng.random(600) < s).astype(np.int64), s, rng.random(600)


def test_report_holds_every_metric_and_is_json() -> None:
    u, y, s, b = rows()
    report = click_report(
        u,
        y,
        s,
        baseline=b,
        groups={"activity": np.where(u < 20, "low", "high"), "range": u % 3},
        history=u,
        bootstrap=20,
    )
    assert next(iter(report)) == "gauc"
    assert (report["gauc"], report["gauc_users"], report["gauc_rows"]) == metrics.gauc(u, y, s)
    assert report["auc"] == metrics.auc(y, s)
    assert report["logloss"] == metrics.log_loss(y, s)
    assert report["normalised_entropy"] == metrics.normalised_entropy(y, s)
    assert report["calibration_ratio"] == metrics.calibration_ratio(y, s)
    assert (report["rows"], report["users"], report["click_rate"]) == (600, 60, y.mean())
    assert report["worse_off_share"] == metrics.worse_off_share(u, y, s, b)
    assert report["worst_tenth_lift"] == metrics.worst_tenth_lift(u, y, s, b)
    assert report["bootstrap"]["differences"]["gauc"]["value"] == pytest.approx(
        report["gauc"] - metrics.gauc(u, y, b).value
    )
    assert report["reasons"] == {}
    low = u < 20
    assert report["by_group"]["activity"]["low"]["auc"] == metrics.auc(y[low], s[low])
    assert list(report["by_group"]["range"]) == ["0", "1", "2"]
    sizes = {name: part["users"] for name, part in report["by_history"].items()}
    assert sizes == {"0-4": 5, "5-9": 5, "10-19": 10, "20-49": 30, "50+": 10}
    json.dumps(report, allow_nan=False)


def test_one_class_gives_none_with_a_reason() -> None:
    report = click_report([0, 0, 1], [1, 1, 1], [0.2, 0.5, 0.8], baseline=[0.5] * 3, history=[3, 3, 7])
    assert report["gauc"] is report["auc"] is report["worst_tenth_lift"] is None
    assert report["reasons"] == dict.fromkeys(
        ("gauc", "auc", "normalised_entropy", "worse_off_share", "worst_tenth_lift"),
        "all 3 rows have label 1",
    )
    assert report["by_history"]["50+"]["reasons"]["logloss"] == "there are no rows"
    assert report["logloss"] is not None


def test_other_reasons() -> None:
    report = click_report([0, 1], [0, 1], [0.2, 0.5])
    assert report["auc"] == 1.0
    assert report["reasons"]["gauc"] == "no user has both classes"
    assert report["reasons"]["worse_off_share"] == "no baseline was given"
    none = np.zeros(0)
    empty = click_report(none, none, none, groups={"g": none}, history=none, bootstrap=5)
    assert empty["by_group"] == {"g": {}}
    assert empty["rows"] == 0
    json.dumps(empty, allow_nan=False)


def test_group_values_may_be_missing() -> None:
    report = click_report([0, 0], [0, 1], [0.2, 0.5], groups={"g": np.array([None, "x"], dtype=object)})
    assert sorted(report["by_group"]["g"]) == ["None", "x"]


def test_faulty_scores_and_lengths_are_refused() -> None:
    with pytest.raises(FedpaError, match="1 of 2 scores are not finite"):
        click_report([0, 0], [0, 1], [np.nan, 0.5])
    with pytest.raises(FedpaError, match="1 of 2 scores are not finite"):
        click_report([0, 0], [0, 1], [0.4, 0.5], baseline=[np.inf, 0.5])
    with pytest.raises(FedpaError, match="group 'g' must have one value for each of the 2 rows"):
        click_report([0, 0], [0, 1], [0.4, 0.5], groups={"g": [1]})
    with pytest.raises(FedpaError, match="history must have"):
        click_report([0, 0], [0, 1], [0.4, 0.5], history=[1, 2, 3])


def test_tables() -> None:
    interval = {"level": 0.95, "intervals": {"gauc": {"low": 0.58, "high": 0.62}}}
    reports: list[dict[str, Any]] = [
        {"name": "fedpa", "gauc": 0.6, "auc": 0.71, "logloss": 0.65, "bootstrap": interval},
        {"name": "a|b", "gauc": None, "auc": 0.5},
    ]
    assert markdown_table(reports) == (
        "| method | GAUC | 95% interval | AUC | log-loss |\n"
        "| --- | ---: | ---: | ---: | ---: |\n"
        "| fedpa | 0.6000 | 0.5800 to 0.6200 | 0.7100 | 0.6500 |\n"
        "| a\\|b | - | - | 0.5000 | - |\n"
    )
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(comparison_table(reports, title="Test rows"))
    text = console.export_text()
    assert "Test rows" in text
    assert "0.5800 to 0.6200" in text
    assert markdown_table([]).startswith("| method | GAUC | AUC | log-loss |")


def test_table_of_a_real_report_without_intervals() -> None:
    u, y, s, _ = rows()
    table = markdown_table([{"name": "m", **click_report(u, y, s)}])
    assert "interval" not in table
