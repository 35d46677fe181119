"""Metrics: what Prometheus reads of a run, from a file and over HTTP."""

from __future__ import annotations

import re
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

import fedpa
from fedpa.errors import ConfigError
from fedpa.telemetry.metrics import Metrics
from prepared import QUICK, small


def line(number: int, **values: Any) -> dict[str, Any]:
    scores = {"auc": 0.7, "gauc": None, "logloss": 0.6}
    return {
        "round": number,
        "participants": 10 * number,
        "seconds_train": 0.5,
        "seconds_eval": 0.25,
        "bytes_up": 100,
        "bytes_down": 50,
        "val": scores,
    } | values


def read(text: str) -> dict[tuple[str, ...], float]:
    """Samples by name and the values of their labels but the run's."""
    return {
        (sample.name, *(value for key, value in sample.labels.items() if key != "run")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_rounds_are_counted() -> None:
    metrics = Metrics("ab")
    metrics.observe(line(0, bytes_up=0, bytes_down=0))
    metrics.observe(line(1, nodes=4, late=1, refused={"repeated": 2, "shape": 1}))
    metrics.observe(line(2, nodes=5, refused={"repeated": 1}))
    found = read(metrics.text())
    assert found["fedpa_round",] == 2
    assert found["fedpa_rounds_total",] == 2
    assert found["fedpa_participants",] == 20
    assert found["fedpa_nodes",] == 5
    assert found["fedpa_late_nodes_total",] == 1
    assert found["fedpa_refused_uploads_total", "repeated"] == 3
    assert found["fedpa_refused_uploads_total", "shape"] == 1
    assert found["fedpa_round_seconds_sum", "train"] == 1.0
    assert found["fedpa_round_seconds_count", "evaluate"] == 3
    assert found["fedpa_bytes_total", "up"] == 200
    assert found["fedpa_bytes_total", "down"] == 100
    assert found["fedpa_validation", "auc"] == 0.7
    assert ("fedpa_validation", "gauc") not in found
    assert set(re.findall(r'run="(\w+)"', metrics.text())) == {"ab"}


def test_every_metric_is_in_the_table_of_the_module() -> None:
    metrics = Metrics("ab")
    metrics.observe(line(1, nodes=4, late=1, refused={"repeated": 2}))
    named = set(re.findall(r"`(fedpa_\w+)`", sys.modules[Metrics.__module__].__doc__ or ""))
    families = {family.name for family in text_string_to_metric_families(metrics.text())}
    assert {name.removesuffix("_total") for name in named} == families


def test_they_are_served_and_the_port_is_given_back() -> None:
    metrics = Metrics("ab", port=0)
    metrics.observe(line(1))
    with urllib.request.urlopen(f"http://127.0.0.1:{metrics.port}/metrics") as answer:
        assert read(answer.read().decode())["fedpa_round",] == 1
    with pytest.raises(ConfigError, match=f"metrics port {metrics.port}: cannot be used"):
        Metrics("cd", port=metrics.port)
    metrics.close()
    again = Metrics("cd", port=metrics.port)
    again.close()


def test_a_run_writes_them(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    made, file = small(tmp_path_factory), tmp_path / "fedpa.prom"
    run = fedpa.adapt(made.foundation, made.dataset, out=tmp_path / "run", metrics_file=file, **(QUICK | {"rounds": 2}))
    found = read(file.read_text())
    assert found["fedpa_rounds_total",] == 2
    assert found["fedpa_bytes_total", "up"] == sum(line["bytes_up"] for line in run.history)
    assert found["fedpa_validation", "auc"] == run.history[-1]["val"]["auc"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fedpa.prom", "run"]


def test_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(ConfigError, match=r"pip install 'fedpa\[metrics\]'"):
        Metrics("ab")
