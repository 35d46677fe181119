"""Ranges name what exists and allow what its setting allows."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import pytest
import yaml

from fedpa.errors import ConfigError
from fedpa.methods import Baseline, FedPA, find_method, method_names
from fedpa.methods.fedpa import BEST
from fedpa.tuning.ranges import Range, Ranges, load_ranges


def ranges(common: Any = None, tried: Any = None, **methods: Any) -> Ranges:
    return Ranges({"tried": tried, "common": common or {}, "methods": methods}, "x.yaml")


def test_the_shipped_file_gives_every_federated_method_something() -> None:
    shipped = load_ranges()
    for name in method_names():
        method = find_method(name)
        if not issubclass(method, Baseline):
            held = {"personal_bias"} if name in ("user-bias", "biases", "fedpa") else set()
            assert {"lr", "epochs", "batch_size", "personal_bias"} - shipped.of(name).keys() == held
    assert "rank" in shipped.of("fedpa+repaired")
    assert shipped.of("foundation") == shipped.of("two-counters") == {}


def test_what_needs_no_federation_is_offered_its_own_section_alone() -> None:
    shipped = load_ranges()
    assert list(shipped.of("pooled")) == ["lr", "batch_size", "weight_decay"]
    assert list(shipped.of("trees")) == ["learning_rate", "leaves", "min_rows_per_leaf"]


def test_what_makes_a_preset_is_not_offered() -> None:
    shipped = load_ranges()
    assert shipped.of("fedpa+reference") == {}
    whole, repaired = shipped.of("fedpa"), shipped.of("fedpa+repaired")
    assert "personal_bias" not in whole
    added = {"personal_decay", "item_counts", "table_mean", "table_prior", "wide_rate", "item_rate"}
    assert added < whole.keys()
    assert repaired == {key: found for key, found in whole.items() if key not in added}


def test_an_ablation_is_not_tuned() -> None:
    shipped = load_ranges()
    for preset in FedPA.follows:
        assert shipped.of(f"fedpa+{preset}") == shipped.tried(f"fedpa+{preset}") == {}


ON_THE_SERVER = {
    "weighting",
    "server_optimizer",
    "server_lr",
    "server_momentum",
    "proximal",
    "table_mean",
    "table_prior",
    "item_counts",
}


def test_what_uploads_nothing_is_not_offered_what_the_server_does() -> None:
    shipped = load_ranges()
    for name in method_names():
        method = find_method(name)
        if not issubclass(method, Baseline):
            found = ON_THE_SERVER & shipped.of(name).keys()
            assert found == (set() if method.family == "device" else ON_THE_SERVER), name
    assert shipped.of("local-only").keys() == {
        "optimizer", "lr", "epochs", "batch_size", "keep_optimizer", "personal_bias", "personal_decay",
        "rank", "alpha", "wide", "wide_rate",
    }  # fmt: skip
    assert [name for name in method_names() if find_method(name).family == "device"] == [
        "head-only", "local-only", "user-bias",
    ]  # fmt: skip


def test_what_a_graph_averages_is_not_chosen() -> None:
    found = load_ranges().of("gpfedrec")
    assert (found["table_mean"].choices, found["weighting"].choices) == (("participants",), ("users",))


STEPS = {"optimizer": "sgd", "lr": 0.1, "epochs": 2}
TABLES = {"table_mean": "touched", "table_prior": 5.0, "item_counts": 16}
OWN = {"personal_bias": True, "personal_decay": 10.0}


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("two-counters", {}),
        ("pooled", {}),
        ("fedpa", {}),  # its preset is what is tried
        ("local-only", {}),
        ("fedpa+reference", {}),
        ("fedpa+repaired", {**STEPS, "alpha": 4.0}),
        ("fedavg", {**STEPS, **OWN, **TABLES}),
        ("ditto+foundation", {**STEPS, **OWN, **TABLES}),
        ("fedmf", {"epochs": 2, **OWN, **TABLES, "item_rate": 10.0}),
        # A rate of 10 lies outside of its own range, and so does a table's mean over those who touched it.
        ("gpfedrec", {"epochs": 2, **OWN, "table_prior": 5.0, "item_counts": 16}),
    ],
)
def test_what_is_tried_beside_the_preset(spec: str, expected: dict[str, Any]) -> None:
    assert load_ranges().tried(spec) == expected


def test_what_is_tried_is_what_the_method_may_have() -> None:
    tried = {"lr": 0.1, "wide": True, "item_bias": True, "personal_bias": True, "epochs": 2, "unheard_of": 1}
    made = ranges({"lr": {"low": 1.0, "high": 2.0}}, tried, fedit={"epochs": {"choices": [3]}})
    # The preset has this rate, a LoRA can have no wide term, its own range lacks two epochs.
    assert made.tried("fedit") == {"item_bias": True, "personal_bias": True}
    assert made.tried("ffa-lora") == {"item_bias": True, "personal_bias": True}
    assert made.tried("user-bias") == {}  # holds both
    assert made.tried("fedavg") == {"lr": 0.1, "personal_bias": True, "epochs": 2}  # outside of what is drawn
    assert ranges().tried("fedavg") == {}


def test_what_is_tried_at_all_is_what_fedpas_default_has() -> None:
    """So that no other method is denied what does well for it."""
    tried = yaml.safe_load((files("fedpa.tuning") / "ranges.yaml").read_text())["tried"]
    assert tried == {key: value for key, value in BEST.items() if key != "select"}


def test_a_method_may_narrow_what_is_common() -> None:
    made = ranges({"lr": {"low": 0.1, "high": 1.0}}, fedpa={"lr": {"choices": [0.5]}, "rank": {"low": 1, "high": 3}})
    assert made.of("fedpa")["lr"].choices == (0.5,)
    assert list(made.of("fedpa")) == ["lr", "rank"]


@pytest.mark.parametrize(
    ("common", "methods", "message"),
    [
        ({"lr_rate": {"choices": [1]}}, {}, "common: no method has a setting 'lr_rate'"),
        ({}, {"fedpa": {"ranks": {"choices": [1]}}}, "fedpa: has no setting 'ranks', known: .*rank"),
        ({}, {"fedpo": {}}, "unknown method 'fedpo', known: .*fedpa"),
        ({"lr": {"low": 0, "high": 1}}, {}, "setting 'lr': .* greater than 0"),
        ({"lr": {"low": 0.0, "high": 1, "log": True}}, {}, "common: lr: .*above 0 on a logarithmic scale"),
        ({"lr": {"low": 2, "high": 1}}, {}, "low below high"),
        ({"lr": {"choices": [1.0], "low": 1}}, {}, "expected choices, or low and high"),
        ({"lr": {"lo": 1}}, {}, "unknown setting 'lo'"),
        ({"lr": [1, 2]}, {}, r"expected choices, or low and high, found \[1, 2\]"),
        ({"optimizer": {"choices": ["adm"]}}, {}, "setting 'optimizer': .*found 'adm'"),
        (
            {"epochs": {"low": 1, "high": 2, "when": {"lr": [1]}}},
            {},
            "epochs: `when` names lr, expected settings above",
        ),
    ],
)
def test_a_slip_is_named(common: Any, methods: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ranges(common, **methods)


def test_a_file_needs_both_sections() -> None:
    with pytest.raises(ConfigError, match=r"x\.yaml: expected the keys common and methods, and perhaps tried"):
        Ranges({"common": {}}, "x.yaml")
    with pytest.raises(ConfigError, match="and perhaps tried"):
        Ranges({"common": {}, "methods": {}, "trials": {}}, "x.yaml")
    assert Ranges({"common": {}, "methods": {}}, "x.yaml").tried("fedavg") == {}


@pytest.mark.parametrize(
    ("found", "inside", "outside"),
    [
        (Range(choices=(False, True)), [True], [0, 1, "True"]),
        (Range(choices=(8, 1024)), [8], [9, 8.5, True]),
        (Range(low=1, high=4), [1, 4], [0, 5, True, "1", None]),
        (Range(low=0.1, high=0.5, log=True), [0.1, 0.3], [0.05, 0.6]),
    ],
)
def test_what_may_be_drawn(found: Range, inside: list[object], outside: list[object]) -> None:
    assert all(map(found.contains, inside))
    assert not any(map(found.contains, outside))
