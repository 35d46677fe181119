"""The order of trials: the preset, then draws that depend on the seed and on what has finished."""

from __future__ import annotations

from typing import Any

import optuna
import pytest

from fedpa.tuning.ranges import Range
from fedpa.tuning.study import MethodStudy

RANGES = {
    "lr": Range(low=0.001, high=0.1, log=True),
    "server_optimizer": Range(choices=("mean", "adam")),
    "server_lr": Range(low=0.01, high=0.1, when={"server_optimizer": ("adam",)}),
}
PRESET = {"lr": 0.5, "server_optimizer": "mean", "server_lr": 1.0}


@pytest.fixture(autouse=True)
def quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def study(storage: Any, seed: int = 0, ranges: Any = RANGES, tried: Any = None) -> MethodStudy:
    return MethodStudy(storage, "one", ranges, PRESET, seed, tried)


def value(settings: dict[str, Any]) -> float:
    return 1.0 - float(settings.get("lr", PRESET["lr"]))


def run(made: MethodStudy, trials: int) -> list[dict[str, Any]]:
    while len(made.finished) < trials:
        one = made.next()
        made.tell(one, value(one.settings), error=None)
    return [trial.user_attrs["settings"] for trial in made.finished]


def test_the_preset_comes_first_even_outside_of_the_ranges() -> None:
    made = study(optuna.storages.InMemoryStorage())
    first = made.next()
    assert (first.number, first.settings) == (0, {})
    found = run(made, 15)
    assert found[0] == {}
    assert made.finished[0].value == 0.5
    assert all(0.001 <= settings["lr"] <= 0.1 for settings in found[1:])
    assert len({settings["lr"] for settings in found[1:]}) == 14
    assert {"server_lr" in settings for settings in found[1:]} == {True, False}
    assert all(settings.get("server_optimizer", "mean") == "adam" for settings in found if "server_lr" in settings)


def test_an_interrupted_study_goes_on_as_if_it_had_not_been() -> None:
    whole = run(study(optuna.storages.InMemoryStorage()), 12)
    storage = optuna.storages.InMemoryStorage()
    run(study(storage), 5)
    study(storage).next()  # Cut off while it ran.
    again = study(storage)
    assert len(again.finished) == 5
    assert run(again, 12) == whole
    assert run(study(optuna.storages.InMemoryStorage(), seed=1), 12) != whole


TRIED = {"lr": 0.05, "server_optimizer": "adam", "server_lr": 0.02}


@pytest.mark.parametrize("tried", [TRIED, {"lr": 0.9}])
def test_what_every_method_tries_comes_second_even_outside_of_the_ranges(tried: dict[str, Any]) -> None:
    made = study(optuna.storages.InMemoryStorage(), tried=tried)
    first = made.next()
    made.tell(first, 0.3, error=None)
    second = made.next()
    assert (first.number, first.settings, second.number, second.settings) == (0, {}, 1, tried)
    assert second.handle is None
    made.tell(second, 0.7, error=None)
    third = made.next()
    assert third.number == 2
    assert third.settings != tried
    assert third.handle is not None
    # The sampler learns from what lies within the ranges alone; the preset's rate does not.
    assert [trial.params for trial in made.finished] == [
        {"server_optimizer": "mean"},
        tried if tried == TRIED else {"server_optimizer": "mean"},
    ]
    assert [trial.value for trial in made.finished] == [0.3, 0.7]


def test_with_something_tried_an_interrupted_study_goes_on_too() -> None:
    whole = run(study(optuna.storages.InMemoryStorage(), tried=TRIED), 5)
    assert whole[:2] == [{}, TRIED]
    storage = optuna.storages.InMemoryStorage()
    run(study(storage, tried=TRIED), 1)
    study(storage, tried=TRIED).next()
    assert run(study(storage, tried=TRIED), 5) == whole
    assert run(study(optuna.storages.InMemoryStorage()), 2)[1] not in ({}, TRIED)


def test_a_failed_trial_counts_and_teaches_nothing() -> None:
    made = study(optuna.storages.InMemoryStorage())
    for _ in range(3):
        made.tell(made.next(), None, error="no")
    assert [trial.value for trial in made.finished] == [None] * 3
    assert made.next().number == 3


def test_only_what_differs_from_the_preset_is_a_setting() -> None:
    made = study(optuna.storages.InMemoryStorage(), ranges={"lr": Range(choices=(0.5, 0.25))})
    found = run(made, 8)
    assert {str(settings) for settings in found} == {"{}", "{'lr': 0.25}"}
