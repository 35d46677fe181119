"""Cells of a comparison: one task, method and seed each, measured once and kept in two files."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fedpa.artifacts import replace_file, sha256, write_json
from fedpa.methods import find_method, parse_spec

__all__ = ["Cell", "Cells", "fingerprint"]

Arrays = Mapping[str, npt.NDArray[Any]]


class Cell(NamedTuple):
    """What is measured on its own.

    Attributes
    ----------
    task : {"click", "topk"}
    spec : str
        ``method`` or ``method+preset``.
    seed : int
        Of the foundation and of the adaptation.
    """

    task: str
    spec: str
    seed: int

    def __str__(self) -> str:
        return f"{self.task} {self.spec} seed {self.seed}"


def fingerprint(
    cell: Cell, dataset: str, settings: Mapping[str, Any], pretraining: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """All that a cell's numbers depend on, as its file notes it.

    Parameters
    ----------
    cell : Cell
    dataset : str
        Hash of the data set of the cell's task.
    settings : mapping
        Settings over the method's preset.
    pretraining : mapping, optional
        Of the foundation, over the defaults.

    Raises
    ------
    ConfigError
        If the method, its preset or a setting is unknown or invalid.
    """
    name, preset = parse_spec(cell.spec)
    configured = find_method(name).configured(preset, settings)
    found = {
        **cell._asdict(),
        **({"pretraining": dict(pretraining)} if pretraining else {}),
        "dataset": dataset,
        "settings": configured.settings.model_dump(mode="json"),
        "fedpa": version("fedpa"),
    }
    if ":" in name:
        found["code"] = sha256(Path(name.rpartition(":")[0]))
    plain: dict[str, Any] = json.loads(json.dumps(found))
    return plain


class Cells:
    """The files of cells, ``<task>/<spec>/<seed>.json`` and ``.npz``; what is there under its name is whole.

    Parameters
    ----------
    folder : Path
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, cell: Cell) -> Path:
        """The cell's JSON file."""
        name = re.sub(r"[^\w+.-]", "_", cell.spec)
        if name != cell.spec:
            name += "-" + hashlib.sha256(cell.spec.encode()).hexdigest()[:8]
        return self.folder / cell.task / name / f"{cell.seed}.json"

    def read(self, cell: Cell) -> dict[str, Any] | None:
        """The content of a cell, None if there is none or it cannot be read."""
        try:
            content = json.loads(self.path(cell).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return content if isinstance(content, dict) else None

    def arrays(self, cell: Cell) -> dict[str, npt.NDArray[Any]]:
        """The arrays of a finished cell."""
        with np.load(self.path(cell).with_suffix(".npz"), allow_pickle=False) as opened:
            return {name: opened[name] for name in opened.files}

    def is_finished(self, cell: Cell, expected: Mapping[str, Any]) -> bool:
        """Whether a cell of that fingerprint was measured without an error."""
        content = self.read(cell)
        return (
            content is not None
            and content.get("error") is None
            and content.get("fingerprint") == expected
            and self.path(cell).with_suffix(".npz").is_file()
        )

    def write(self, cell: Cell, content: Mapping[str, Any], arrays: Arrays) -> None:
        """Keep a finished cell: first its arrays, then the JSON by which it counts as finished."""
        path = self.path(cell)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        with replace_file(path.with_suffix(".npz")) as fresh, fresh.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        with replace_file(path) as fresh:
            write_json(fresh, content)

    def write_error(self, cell: Cell, content: Mapping[str, Any]) -> None:
        """Keep why a cell failed; the next comparison tries it again."""
        path = self.path(cell)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".npz").unlink(missing_ok=True)
        with replace_file(path) as fresh:
            write_json(fresh, content)
