"""What a comparison is to measure: cells with their data sets and settings."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from fedpa.comparison.cells import Cell, fingerprint
from fedpa.data.dataset import Dataset, load_dataset
from fedpa.errors import ConfigError
from fedpa.methods import compared_specs, find_method, parse_spec
from fedpa.tuning.chosen import Chosen, chosen_settings, read_chosen

__all__ = ["Planned", "Say", "applicable", "check_task", "compared_methods", "plan", "task_dataset"]

TASKS = ("click", "topk")
Say = Callable[[str], None]
"""Takes a line for a person."""


class Planned(NamedTuple):
    """A cell with what it is to be measured with.

    Attributes
    ----------
    cell : Cell
    settings : dict
        Over the method's preset: chosen ones, and the caller's over those.
    chosen : Chosen or None
        Where they are from; None: the preset.
    fingerprint : dict
    """

    cell: Cell
    settings: dict[str, Any]
    chosen: Chosen | None
    fingerprint: dict[str, Any]

    @property
    def needs_foundation(self) -> bool:
        """Whether a foundation must be there first."""
        name, preset = parse_spec(self.cell.spec)
        return find_method(name).configured(preset, self.settings).reads_foundation

    @property
    def note(self) -> dict[str, Any]:
        """What the cell's file says beside the measurements."""
        return {
            "fingerprint": self.fingerprint,
            "settings_from": "preset" if self.chosen is None else "tuned",
            "trials": 0 if self.chosen is None else self.chosen.trials,
        }


def compared_methods(methods: Sequence[str] | Literal["all"]) -> list[str]:
    """The specs to run, each once.

    Raises
    ------
    ConfigError
        If one is unknown, or there is none.
    """
    specs = compared_specs() if methods == "all" else list(dict.fromkeys(methods))
    for spec in specs:
        parse_spec(spec)
    if not specs:
        raise ConfigError("methods: none was named", "name some, or `all`")
    return specs


def check_task(task: str) -> None:
    """Refuse what is not a task.

    Raises
    ------
    ConfigError
    """
    if task not in TASKS:
        near = difflib.get_close_matches(task, TASKS, 1)
        fix = f"write {near[0]}" if near else "name one of them; see `--help`"
        raise ConfigError(f"unknown task {task!r}, expected {' or '.join(TASKS)}", fix)


def applicable(settings: Mapping[str, Any], specs: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Those of some settings that each method has, by spec.

    Raises
    ------
    ConfigError
        If none of the methods has one of them.
    """
    fields = {spec: find_method(parse_spec(spec)[0]).settings_type.model_fields for spec in specs}
    for name in settings:
        if not any(name in known for known in fields.values()):
            near = difflib.get_close_matches(name, {key for known in fields.values() for key in known}, 1)
            raise ConfigError(
                f"setting {name!r}: none of the methods has it", f"write {near[0]}" if near else "leave it out"
            )
    return {spec: {key: value for key, value in settings.items() if key in known} for spec, known in fields.items()}


def task_dataset(dataset: Dataset, task: str, work: Path, say: Say = lambda line: None) -> Dataset:
    """The data set of a task; that of `topk` is made once and kept under `work`."""
    if task == "click":
        return dataset
    from fedpa.data.leave_one_out import leave_one_out

    path = work / dataset.hash[:12] / task
    if path.is_dir():
        return load_dataset(path)
    say(f"{task}: leaving every user's last click out")
    return leave_one_out(dataset, path)


def _spec(name: str, preset: str) -> str:
    return name if preset == "default" else f"{name}+{preset}"


def plan(
    specs: Sequence[str],
    datasets: Mapping[str, Dataset],
    seeds: int,
    source: str,
    tuned: Path | str | bool,
    settings: Mapping[str, Any],
    pretraining: Mapping[str, Any] | None = None,
) -> list[Planned]:
    """All cells, task by task and method by method.

    Raises
    ------
    ConfigError
        If no method has a setting of that name, or a value is invalid.
    """
    mine = applicable(settings, specs)
    file = None if isinstance(tuned, bool) else read_chosen(Path(tuned))
    found = []
    for task, dataset in datasets.items():
        for spec in specs:
            name, preset = parse_spec(spec)
            method = find_method(name)
            whose = _spec(name, method.follows.get(preset, preset))
            chosen = None
            if tuned:
                chosen = chosen_settings(source, task, whose) if file is None else file.get((task, whose))
            held = method.held.get(preset, ()) if whose != spec else ()
            values = {key: value for key, value in (chosen.settings if chosen else {}).items() if key not in held}
            values |= mine[spec]
            for seed in range(seeds if getattr(method, "seeds_matter", True) else 1):
                cell = Cell(task, spec, seed)
                found.append(Planned(cell, values, chosen, fingerprint(cell, dataset.hash, values, pretraining)))
    return found
