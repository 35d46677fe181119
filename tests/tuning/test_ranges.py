"""Ranges name what exists and allow what its setting allows."""

from __future__ import annotations

from typing import Any

import pytest

from fedpa.errors import ConfigError
from fedpa.methods import Baseline, find_method, method_names
from fedpa.tuning.ranges import Range, Ranges, load_ranges


def ranges(common: Any = None, **methods: Any) -> Ranges:
    return Ranges({"common": common or {}, "methods": methods}, "x.yaml")


def test_the_shipped_file_gives_every_federated_method_something() -> None:
    shipped = load_ranges()
    for name in method_names():
        method = find_method(name)
        if not issubclass(method, Baseline):
            held = {"personal_bias"} if name == "user-bias" else set()
            assert {"lr", "epochs", "batch_size", "personal_bias"} - shipped.of(name).keys() == held
    assert "rank" in shipped.of("fedpa+repaired")
    assert shipped.of("foundation") == shipped.of("two-counters") == {}


def test_what_needs_no_federation_is_offered_its_own_section_alone() -> None:
    shipped = load_ranges()
    assert list(shipped.of("pooled")) == ["lr", "batch_size", "weight_decay"]
    assert list(shipped.of("trees")) == ["learning_rate", "leaves", "min_rows_per_leaf"]


def test_what_makes_a_preset_is_not_offered() -> None:
    shipped = load_ranges()
    whole = shipped.of("fedpa")
    assert shipped.of("fedpa+reference") == {}
    for preset, held in (("no-user-bias", "personal_bias"), ("no-prior", "personal_decay")):
        assert shipped.of(f"fedpa+{preset}") == {key: found for key, found in whole.items() if key != held}
        assert held in whole


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
    with pytest.raises(ConfigError, match=r"x\.yaml: expected the keys common and methods"):
        Ranges({"common": {}}, "x.yaml")


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
