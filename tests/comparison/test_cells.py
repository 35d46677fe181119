"""Cells are whole or not there, and finished only for what they were measured with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedpa.comparison.cells import Cell, Cells, fingerprint
from fedpa.errors import ConfigError

CELL = Cell("click", "fedpa", 1)
SCORES = {"scores": np.array([0.25, 0.5], np.float32)}


def content(**changes: Any) -> dict[str, Any]:
    return {"fingerprint": fingerprint(CELL, "abc", {}), "error": None, **changes}


def test_a_finished_cell_is_finished_for_its_fingerprint_alone(tmp_path: Path) -> None:
    cells = Cells(tmp_path)
    assert not cells.is_finished(CELL, fingerprint(CELL, "abc", {}))
    cells.write(CELL, content(), SCORES)
    assert cells.is_finished(CELL, fingerprint(CELL, "abc", {}))
    assert not cells.is_finished(CELL, fingerprint(CELL, "abd", {}))
    assert not cells.is_finished(CELL, fingerprint(CELL, "abc", {"lr": 0.5}))
    assert not cells.is_finished(CELL, fingerprint(CELL, "abc", {}, {"reader": "none"}))
    assert cells.arrays(CELL)["scores"].tolist() == [0.25, 0.5]
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["1.json", "1.npz"]


def test_what_is_written_halfway_is_not_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = Cells(tmp_path)
    cells.write(CELL, content(), SCORES)

    def fails(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez_compressed", fails)
    with pytest.raises(KeyboardInterrupt):
        cells.write(CELL, content(fingerprint={}), SCORES)
    # The old arrays must not pass for those of the new cell, nor the other way round.
    assert cells.read(CELL) is None
    assert [path.name for path in tmp_path.rglob("*.*")] == ["1.npz"]


def test_errors_are_kept_and_not_finished(tmp_path: Path) -> None:
    cells = Cells(tmp_path)
    cells.write(CELL, content(), SCORES)
    cells.write_error(CELL, content(error="no"))
    assert not cells.is_finished(CELL, fingerprint(CELL, "abc", {}))
    assert (cells.read(CELL) or {})["error"] == "no"


@pytest.mark.parametrize("damage", ["", "[]", "{", '{"fingerprint": {}}'])
def test_a_damaged_cell_is_measured_again(tmp_path: Path, damage: str) -> None:
    cells = Cells(tmp_path)
    cells.write(CELL, content(), SCORES)
    cells.path(CELL).write_text(damage)
    assert not cells.is_finished(CELL, fingerprint(CELL, "abc", {}))


def test_a_cell_without_arrays_is_measured_again(tmp_path: Path) -> None:
    cells = Cells(tmp_path)
    cells.write(CELL, content(), SCORES)
    cells.path(CELL).with_suffix(".npz").unlink()
    assert not cells.is_finished(CELL, fingerprint(CELL, "abc", {}))


def test_a_fingerprint_holds_every_setting_and_ones_own_code(tmp_path: Path) -> None:
    same = fingerprint(CELL, "abc", {"lr": 0.1})
    assert same == fingerprint(CELL, "abc", {})
    assert same["settings"]["rank"] == 4
    with pytest.raises(ConfigError, match="unknown setting 'ranks'"):
        fingerprint(CELL, "abc", {"ranks": 1})
    file = tmp_path / "mine.py"
    file.write_text("from fedpa.methods import FedPA\n\nclass Mine(FedPA):\n    name = 'mine'\n")
    mine = Cell("click", f"{file}:Mine", 0)
    before = fingerprint(mine, "abc", {})
    file.write_text(file.read_text() + "# changed\n")
    assert fingerprint(mine, "abc", {}) != before


def test_names_of_files_stay_in_the_folder_and_apart(tmp_path: Path) -> None:
    cells = Cells(tmp_path)
    names = {cells.path(Cell("click", spec, 0)) for spec in ("fedpa", "a/b.py:C", "a_b.py:C", "../b.py:C")}
    assert len(names) == 4
    assert all(path.parent.parent == tmp_path / "click" for path in names)
