"""What a worker does for a comparison: pre-train a foundation, time a round, measure a cell."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fedpa.adaptation import adapt
from fedpa.comparison.cells import Cell, Cells
from fedpa.data.dataset import Dataset, Part, load_dataset
from fedpa.errors import FedpaError
from fedpa.methods import parse_spec
from fedpa.models.foundation import load_foundation
from fedpa.models.pretrain import pretrain
from fedpa.run import Run

__all__ = ["Request", "best_validation", "make_foundation", "measure", "plain", "rounds_to_99", "time_a_round"]


class Request(NamedTuple):
    """All that a worker needs to measure a cell.

    Attributes
    ----------
    cell : Cell
    dataset : str
        Folder of the data set of the cell's task.
    foundation : str or None
        Folder of the foundation of the cell's seed.
    settings : mapping
        Over the method's preset.
    note : mapping
        What the cell's file says beside the measurements: fingerprint, where the settings are from, trials.
    folder, scratch : str
        Of the cells, and for what is thrown away.
    """

    cell: Cell
    dataset: str
    foundation: str | None
    settings: Mapping[str, Any]
    note: Mapping[str, Any]
    folder: str
    scratch: str


@lru_cache(maxsize=2)
def _dataset(path: str) -> Dataset:
    return load_dataset(path)


def make_foundation(dataset: str, out: str, seed: int, settings: Mapping[str, Any] | None = None) -> None:
    """Pre-train a foundation into a folder that does not exist yet."""
    pretrain(_dataset(dataset), out=out, seed=seed, **settings or {})


def time_a_round(dataset: str, scratch: str) -> dict[str, float]:
    """Seconds of one epoch of pre-training (``epoch``), and of a round of FedPA: one local epoch, and scoring."""
    # The first of each reads files and warms up; it is the second that goes on and on.
    foundation = pretrain(_dataset(dataset), epochs=1)
    begin = time.perf_counter()
    pretrain(_dataset(dataset), epochs=1)
    epoch = time.perf_counter() - begin
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        path = Path(folder) / "run"
        run = adapt(foundation, _dataset(dataset), out=path, method="fedpa", rounds=2, patience=0, epochs=1)
        line = run.history[-1]
    return {"epoch": epoch, "train": line["seconds_train"], "score": line["seconds_eval"]}


def measure(request: Request) -> float:
    """Adapt, evaluate the test part, leave the cell's files and return the seconds it took.

    Raises
    ------
    RuntimeError
        If the adaptation was cut short.
    """
    cell = request.cell
    dataset = _dataset(request.dataset)
    foundation = None if request.foundation is None else load_foundation(request.foundation)
    name, preset = parse_spec(cell.spec)
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=request.scratch) as folder:
        run = adapt(
            foundation,
            dataset,
            out=Path(folder) / "run",
            method=name,
            preset=preset,
            seed=cell.seed,
            **request.settings,
        )
        if run.summary["interrupted"]:
            raise RuntimeError("interrupted")
        found, arrays = _click(run) if cell.task == "click" else _topk(run)
        seconds = time.perf_counter() - begin
        content = {
            **cell._asdict(),
            **request.note,
            "settings": run.config["settings"],
            "summary": run.summary,
            "history": run.history,
            "rounds_to_99": rounds_to_99(run.history),
            "device_seconds": _device_seconds(run.history),
            "cold": _cold(run),
            **found,
            "seconds": seconds,
            "error": None,
        }
    Cells(Path(request.folder)).write(cell, plain(content), arrays)
    return seconds


def _click(run: Run) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    report = run.evaluate("test")
    parts = {key: report.pop(key) for key in ("by_history", "by_group")}
    scores = run.scores[run.rows.part == Part.TEST].astype(np.float32)
    return {"metrics": report, **parts}, {"scores": scores}


def _topk(run: Run) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    ranks = run.leave_one_out()
    arrays = {key: np.asarray(getattr(ranks, key)) for key in ("users", "rank", "sampled_rank", "seen_in_training")}
    # By the names of the report.
    for name in ("hr", "ndcg"):
        arrays[f"{name}@{ranks.k}"] = np.asarray(getattr(ranks, name))
        arrays[f"{name}@{ranks.k}_sampled{ranks.sampled}"] = np.asarray(getattr(ranks, f"sampled_{name}"))
    return {"metrics": ranks.report()}, arrays


def _cold(run: Run) -> dict[str, Any] | None:
    """Cold users after 0 to 5 rows; a method that cannot score them says why."""
    if not len(run.dataset.rows(Part.COLD_TEST)):
        return None
    try:
        return run.evaluate("cold")
    except FedpaError as error:
        return {"error": str(error)}


def _device_seconds(history: Sequence[Mapping[str, Any]]) -> float | None:
    """Seconds of training per participant and round, None if nobody trained."""
    took_part = sum(line["participants"] for line in history)
    return sum(line["seconds_train"] for line in history) / took_part if took_part else None


def _validation(line: Mapping[str, Any]) -> float | None:
    values = line.get("val") or {}
    pooled, within = values.get("auc"), values.get("gauc")
    return None if pooled is None or within is None else float(pooled + within) / 2


def best_validation(history: Sequence[Mapping[str, Any]]) -> float | None:
    """Best mean of validation AUC and GAUC over rounds; None where no round has both."""
    return max((value for value in map(_validation, history) if value is not None), default=None)


def rounds_to_99(history: Sequence[Mapping[str, Any]]) -> int | None:
    """The first round that has 99% of the best mean of validation AUC and GAUC; None without rounds."""
    best = best_validation(history)
    if best is None or len(history) < 2:
        return None
    return next(
        int(line["round"]) for line in history if (value := _validation(line)) is not None and value >= 0.99 * best
    )


def plain(content: Any) -> Any:
    """The same for JSON: numbers of NumPy become Python's, those that are not finite None."""
    if isinstance(content, Mapping):
        return {str(key): plain(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [plain(value) for value in content]
    if isinstance(content, np.ndarray):
        return plain(content.tolist())
    if isinstance(content, np.generic):
        return plain(content.item())
    if isinstance(content, float) and not math.isfinite(content):
        return None
    return content
