"""Settings that were chosen for a data set, by task and method."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from fedpa.artifacts import replace_file
from fedpa.data.dataset import Dataset
from fedpa.errors import ConfigError

__all__ = ["Chosen", "chosen_settings", "data_name", "read_chosen", "write_chosen"]

_KEYS = ("settings", "trials", "value", "preset_value")


@dataclass(frozen=True)
class Chosen:
    """The best trial of a method.

    Attributes
    ----------
    settings : dict
        Those that differ from the preset's.
    trials : int
        How many were run.
    value, preset_value : float or None
        Best validation value of the chosen settings and of the preset; None where it is undefined.
    """

    settings: dict[str, Any]
    trials: int
    value: float | None
    preset_value: float | None


AllChosen = dict[tuple[str, str], Chosen]


def data_name(dataset: Dataset) -> str:
    """What settings are chosen for: source, label, features and split, as in ``kuaisar-r-click-causal-per-user``."""
    settings = dataset.manifest["settings"]
    return "-".join([dataset.manifest["source"], dataset.label_name, settings["features"], settings["split"]])


def chosen_settings(source: str, task: str, spec: str) -> Chosen | None:
    """What this package ships for a data set.

    Parameters
    ----------
    source : str
        The data set's `data_name`.
    task : {"click", "topk"}
    spec : str
        ``method`` or ``method+preset``.
    """
    return _shipped(source).get((task, spec))


@lru_cache
def _shipped(source: str) -> AllChosen:
    # The name may come from a schema of the user's own, and so be a path.
    if not re.fullmatch(r"[\w-]+", source):
        return {}
    file = files("fedpa.tuning") / "chosen" / f"{source}.yaml"
    return _parsed(file.read_text(encoding="utf-8"), str(file)) if file.is_file() else {}


def read_chosen(path: Path) -> AllChosen:
    """Read a file that `fedpa tune` wrote, by task and spec.

    Raises
    ------
    ConfigError
        If it cannot be read or is not such a file.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})", "give the chosen.yaml of `fedpa tune`") from None
    return _parsed(text, str(path))


def _parsed(text: str, where: str) -> AllChosen:
    try:
        content = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: not readable as YAML ({error})", "run `fedpa tune` again") from None
    found = {}
    for task, specs in content.items() if isinstance(content, Mapping) else [(where, None)]:
        if not isinstance(specs, Mapping):
            raise ConfigError(f"{where}: expected tasks, each with methods, found {task!r}", "run `fedpa tune` again")
        for spec, facts in specs.items():
            if not isinstance(facts, Mapping) or set(facts) != set(_KEYS) or not isinstance(facts["settings"], Mapping):
                raise ConfigError(f"{where}: {task} {spec}: expected {', '.join(_KEYS)}", "run `fedpa tune` again")
            found[str(task), str(spec)] = Chosen(
                dict(facts["settings"]), int(facts["trials"]), facts["value"], facts["preset_value"]
            )
    return found


def write_chosen(path: Path, chosen: AllChosen) -> None:
    """Write such a file, tasks and specs in order."""
    content: dict[str, dict[str, Any]] = {}
    for (task, spec), one in sorted(chosen.items()):
        content.setdefault(task, {})[spec] = {
            "settings": one.settings,
            "trials": one.trials,
            "value": one.value,
            "preset_value": one.preset_value,
        }
    with replace_file(path) as fresh:
        fresh.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120), encoding="utf-8")
