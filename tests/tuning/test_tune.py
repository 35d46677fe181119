"""Tuning runs the same number of trials of every method, goes on where it was cut off, and says what was best."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from command import answer
from fedpa.data.dataset import load_dataset
from fedpa.errors import ConfigError
from fedpa.tuning.chosen import read_chosen
from fedpa.tuning.trials import best_settings
from fedpa.tuning.tune import tune
from prepared import Small, small

METHODS = ("fedpa", "fedpa+repaired", "fedpa+no-wide", "two-counters")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return small(tmp_path_factory)


def tuned(
    world: Small, out: Path, trials: int, **options: Any
) -> tuple[dict[str, Any], list[str], list[dict[str, Any]]]:
    """The result, what was said and all trials; two rounds each."""
    said: list[str] = []
    options = {"methods": METHODS, "settings": {"rounds": 2, "patience": 0}, "jobs": 1, **options}
    result = tune(world.dataset, out=out, trials=trials, say=said.append, **options)
    return result, said, json.loads((out / "trials.json").read_text())


@pytest.fixture(scope="module")
def finished(world: Small, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    out = tmp_path_factory.mktemp("finished") / "tuning"
    _, said, trials = tuned(world, out, 2)
    assert said[1] == "6 trials, 0 of them finished"
    return out, trials


def test_every_method_gets_the_same_number_of_trials(world: Small, finished: tuple[Path, list[dict[str, Any]]]) -> None:
    out, trials = finished
    numbers = {spec: [line["number"] for line in trials if line["spec"] == spec] for spec in METHODS}
    # Without a part it follows the default, which is tuned.
    assert numbers == {"fedpa": [0, 1], "fedpa+repaired": [0, 1], "fedpa+no-wide": [0], "two-counters": [0]}
    assert all(line["settings"] == {} for line in trials if line["number"] == 0)
    assert all(line["settings"] for line in trials if line["number"] == 1)
    assert all(line["rounds"] == 2 and line["error"] is None for line in trials if line["spec"] != "two-counters")
    second = {line["spec"]: line["settings"] for line in trials if line["number"] == 1}
    assert second["fedpa+repaired"] == {"optimizer": "sgd", "lr": 0.1, "epochs": 2, "alpha": 4.0}
    assert second["fedpa"] != second["fedpa+repaired"]
    drawn = {name for line in trials for name in line["settings"]}
    assert "lr" in drawn
    assert not drawn & {"rounds", "patience", "select"}
    assert read_chosen(out / "chosen.yaml") == best_settings(trials)
    for line in yaml.safe_load((out / "chosen.yaml").read_text())["click"].values():
        assert line["value"] >= line["preset_value"]


def test_trials_see_only_users_that_were_open(world: Small, finished: tuple[Path, list[dict[str, Any]]]) -> None:
    (folder,) = finished[0].glob("work/pseudo-*")
    pseudo = set(load_dataset(folder).user_ids)
    private = set(world.dataset.user_ids.filter(world.dataset.side != 0))
    assert pseudo
    assert not pseudo & private


def test_finished_trials_are_kept_and_the_missing_ones_run(
    world: Small, finished: tuple[Path, list[dict[str, Any]]]
) -> None:
    out, before = finished
    result, said, after = tuned(world, out, 3)
    assert said[0] == "8 trials, 6 of them finished"
    assert [line for line in after if line["number"] < 2] == before
    assert len(after) == 8
    assert result["chosen"]["fedpa"]["trials"] == 3
    _, said, again = tuned(world, out, 3)
    assert said == ["8 trials, 8 of them finished"]
    assert again == after
    # A method tuned alone leaves what is known of the others.
    _, said, again = tuned(world, out, 3, methods=("two-counters",))
    assert again == after


def test_what_the_caller_sets_is_not_tried(
    world: Small, finished: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    out = tmp_path / "copy"
    shutil.copytree(finished[0], out)
    given = {"rounds": 1, "patience": 0, "lr": 0.05, "alpha": 2.0}
    _, said, trials = tuned(world, out, 2, methods=("fedpa+repaired",), settings=given)
    assert said[0] == "2 trials, 0 of them finished"
    settings = [line["settings"] for line in trials if line["spec"] == "fedpa+repaired"]
    assert settings == [{}, {"optimizer": "sgd", "epochs": 2}]


@pytest.mark.slow
def test_the_seed_decides_the_trials(world: Small, finished: tuple[Path, list[dict[str, Any]]], tmp_path: Path) -> None:
    _, _, again = tuned(world, tmp_path / "same", 2, methods=("fedpa",))
    timeless = [
        [{key: value for key, value in line.items() if key != "seconds"} for line in lines if line["spec"] == "fedpa"]
        for lines in (again, finished[1])
    ]
    assert timeless[0] == timeless[1]
    _, said, other = tuned(world, tmp_path / "same", 2, methods=("fedpa",), seed=1)
    assert said[1] == "2 trials, 0 of them finished"
    assert [line["settings"] for line in other] != [line["settings"] for line in again]


def test_a_trial_that_fails_is_counted(world: Small, tmp_path: Path) -> None:
    file = tmp_path / "broken.py"
    file.write_text(
        "from fedpa.methods import FedPA\n\nclass Broken(FedPA):\n    name = 'broken'\n"
        "    def loss(self, logits, labels, weights):\n        raise ValueError('out of luck')\n"
    )
    result, _, trials = tuned(world, tmp_path / "out", 2, methods=(f"{file}:Broken",))
    assert [(line["value"], line["error"]) for line in trials] == [(None, "ValueError: out of luck")] * 2
    assert result["failed"] == {f"{file}:Broken": 2}
    assert result["chosen"][f"{file}:Broken"]["settings"] == {}


@pytest.mark.parametrize(("name", "least"), [("trials", 1), ("jobs", 1), ("seed", 0)])
def test_too_small_a_number_is_refused_before_anything_is_written(
    world: Small, tmp_path: Path, name: str, least: int
) -> None:
    options: dict[str, Any] = {name: least - 1}
    with pytest.raises(ConfigError, match=f"{name}: found {least - 1}, expected at least {least}") as caught:
        tune(world.dataset, out=tmp_path / "out", methods=["fedpa"], **options)
    assert caught.value.fix == "give a larger number"
    assert list(tmp_path.iterdir()) == []


def test_without_optuna_the_extra_is_named(world: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match=r'not installed\n.*pip install "fedpa\[tune\]"'):
        tune(world.dataset, out=tmp_path / "out", methods=["fedpa"])


def test_of_equal_values_the_preset_is_best() -> None:
    def trial(number: int, value: float | None) -> dict[str, Any]:
        return {"task": "click", "spec": "a", "number": number, "value": value, "settings": {"n": number}}

    def best(*values: float | None) -> tuple[int, float | None, int]:
        found = best_settings([trial(number, value) for number, value in enumerate(values)])["click", "a"]
        return found.settings["n"], found.value, found.trials

    assert best(0.5, 0.5) == (0, 0.5, 2)
    assert best(0.5, None, 0.6) == (2, 0.6, 3)
    assert best(None, 0.4) == (1, 0.4, 2)
    assert best(None, None) == (0, None, 2)


@pytest.mark.slow
def test_on_the_command_line_and_into_a_comparison(world: Small, tmp_path: Path) -> None:
    one = (world.dataset.path, "--methods", "fedpa")
    found = answer("tune", *one, "--out", tmp_path / "tuning", "--trials", 2, "--set", "rounds=2")
    assert found["chosen"]["fedpa"]["trials"] == 2
    answer(
        "compare", *one, "--out", tmp_path / "comparison", "--seeds", 1, "--draws", 10,
        "--chosen", found["settings"], "--set", "rounds=1",
    )  # fmt: skip
    cell = json.loads((tmp_path / "comparison" / "cells" / "click" / "fedpa" / "0.json").read_text())
    assert cell["trials"] == 2
    assert cell["settings_from"] == "tuned"
    assert cell["settings"].items() >= {**found["chosen"]["fedpa"]["settings"], "rounds": 1}.items()
