"""What a comparison found: the content of ``results.json``, and the files that show it."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import pydantic
from pydantic import Field

from fedpa.artifacts import FORMAT_VERSION, replace_file, write_json
from fedpa.errors import ArtifactError

__all__ = [
    "DatasetSummary",
    "Difference",
    "Measured",
    "Results",
    "Round",
    "Row",
    "TaskResults",
    "read_results",
    "write_results",
]

Family = Literal["baseline", "device", "ceiling", "federated", "adapter"]


class _Frozen(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Measured(_Frozen):
    """A mean over seeds with its interval; None where it is undefined."""

    value: float | None
    low: float | None = None
    high: float | None = None


class Difference(Measured):
    """A metric minus that of a reference, with the p-value and the one corrected for all methods."""

    p: float | None = None
    p_holm: float | None = None


class Round(_Frozen):
    """Quality after one round.

    Attributes
    ----------
    round : int
        0 is before training.
    seeds : int
        Runs that got that far; metrics are means over them.
    metrics : dict of str to float or None
    """

    round: int
    seeds: int
    metrics: dict[str, float | None]


class Row(_Frozen):
    """A method on a task. A method that failed has an `error` and nothing measured.

    Attributes
    ----------
    method : str
        Its spec: ``name`` or ``name+preset``.
    title, family, inputs : str
        As the method gives them.
    settings : dict
    settings_from : {"tuned", "preset"}
    trials : int or None
        That the settings were chosen from.
    seeds : list of int
        Runs that were finished; lists per seed are in this order.
    metrics : dict of str to Measured
    by_seed : dict of str to list of float or None
    differences : dict of str to dict of str to Difference
        Reference, metric.
    bytes_up, bytes_down : float or None
        Per user and round.
    rounds, best_rounds, rounds_to_99 : list of int or None
        Per seed: rounds trained, the round kept, and the first with 99% of its validation value.
    device_seconds : float or None
        Training time per user and round.
    parameters : dict of str to int
        Weights by scope.
    device_parameters : int or None
        Weights that a device stores for itself.
    by_round : list of Round
    by_history : dict of str to dict
        Training rows of the user (``5-9``): metrics and ``users``.
    by_group : dict of str to dict of str to dict
        Grouping, value: metrics and ``users``.
    cold : dict or None
        Cold users by rows of support.
    error : str or None
    """

    method: str
    title: str
    family: Family
    inputs: str = ""
    settings: dict[str, Any] = Field(default_factory=dict)
    settings_from: Literal["tuned", "preset"] = "preset"
    trials: int | None = None
    seeds: list[int] = Field(default_factory=list)
    metrics: dict[str, Measured] = Field(default_factory=dict)
    by_seed: dict[str, list[float | None]] = Field(default_factory=dict)
    differences: dict[str, dict[str, Difference]] = Field(default_factory=dict)
    bytes_up: float | None = None
    bytes_down: float | None = None
    rounds: list[int | None] = Field(default_factory=list)
    best_rounds: list[int | None] = Field(default_factory=list)
    rounds_to_99: list[int | None] = Field(default_factory=list)
    device_seconds: float | None = None
    parameters: dict[str, int] = Field(default_factory=dict)
    device_parameters: int | None = None
    by_round: list[Round] = Field(default_factory=list)
    by_history: dict[str, dict[str, Any]] = Field(default_factory=dict)
    by_group: dict[str, dict[str, dict[str, Any]]] = Field(default_factory=dict)
    cold: dict[str, Any] | None = None
    error: str | None = None


class TaskResults(_Frozen):
    """All methods on one task.

    Attributes
    ----------
    task : {"click", "topk"}
    reference : list of str
        Methods that differences are taken to; the first is the one that tables show.
    metrics : list of str
        In the order of tables; the first two are the ones that differences and figures show.
    users, test_rows : int or None
        What the metrics are over.
    rows : list of Row
        In the order of tables.
    rounds_on : str
        Part of the data that `Row.by_round` is on.
    left_out : dict of str to str
        Methods that were not run on this task, and why.
    notes : list of str
    """

    task: Literal["click", "topk"]
    reference: list[str]
    metrics: list[str]
    users: int | None = None
    test_rows: int | None = None
    rows: list[Row]
    rounds_on: str = "test"
    left_out: dict[str, str] = Field(default_factory=dict)
    notes: list[str] = Field(default_factory=list)

    @property
    def measured(self) -> list[Row]:
        """The rows of methods that did not fail."""
        return [row for row in self.rows if row.error is None]

    @property
    def titles(self) -> dict[str, str]:
        """Titles by spec."""
        return {row.method: row.title for row in self.rows}


class DatasetSummary(_Frozen):
    """Which data set was compared on."""

    name: str
    hash: str
    split: str = ""
    features: str = ""
    counts: dict[str, int | float | None] = Field(default_factory=dict)


class Results(_Frozen):
    """The content of ``results.json``.

    Attributes
    ----------
    dataset : DatasetSummary
    seeds, draws : int
        Runs of every method, and draws of users for intervals.
    level : float
        Of the intervals.
    command : str
        That makes these results.
    seconds : float or None
        All cells together.
    trials : int or None
        Trials of tuning, where settings were tuned.
    tasks : list of TaskResults
    failed : dict of str to str
        Cells that failed, and why.
    """

    kind: Literal["comparison"] = "comparison"
    format_version: int = FORMAT_VERSION
    fedpa: str = Field(default_factory=lambda: version("fedpa"))
    dataset: DatasetSummary
    seeds: int
    draws: int
    level: float = 0.95
    command: str = ""
    seconds: float | None = None
    trials: int | None = None
    tasks: list[TaskResults]
    failed: dict[str, str] = Field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The same, ready for JSON."""
        return self.model_dump(mode="json")


def write_results(out: Path, results: Results) -> None:
    """Write ``results.json``, ``results.csv``, ``results.md`` and ``index.html`` into a folder that exists.

    Raises
    ------
    ArtifactError
        If a file cannot be written; the one before stays.
    """
    from fedpa.comparison.long_form import csv_text
    from fedpa.comparison.page import page
    from fedpa.comparison.tables import markdown

    with replace_file(out / "results.json") as fresh:
        write_json(fresh, results.as_dict())
    for name, text in (("csv", csv_text(results)), ("md", markdown(results))):
        with replace_file(out / f"results.{name}") as fresh:
            fresh.write_text(text, encoding="utf-8")
    with replace_file(out / "index.html") as fresh:
        fresh.write_text(page(results), encoding="utf-8")


def read_results(path: Path) -> Results:
    """Read ``results.json``.

    Raises
    ------
    ArtifactError
        If it is missing, or something else.
    """
    try:
        found = Results.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error.strerror})") from error
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ArtifactError(
            f"{path}: not the results of a comparison ({where}: {first['msg']})",
            "make them again with `fedpa compare`",
        ) from error
    if found.format_version != FORMAT_VERSION:
        raise ArtifactError(
            f"{path}: written in format version {found.format_version}, this fedpa reads version {FORMAT_VERSION}",
            "make them again with `fedpa compare`",
        )
    return found
