"""What devices keep: columns of a user, rows of tables, generations, and what erasing leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from arrays import CPU, Array, toy
from fedpa.data.dataset import Part
from fedpa.errors import ArtifactError
from fedpa.federation.device import DeviceStore
from fedpa.federation.parameters import FROZEN, PERSONAL, SHARED, Block, Layout, Parameter, Scope, Table
from fedpa.federation.rows import ShardRows
from fedpa.federation.touched import TouchedRows
from fedpa.settings import Settings

KEPT = Scope("shared", keeps=True)
SCOPES = {"p": PERSONAL, "s": SHARED, "k": KEPT, "f": FROZEN}
ITEMS = [[4, 1, 4], [], [2], [6, 3, 3]]  # by user; all of them to train on


def layout(*names: str) -> Layout:
    """Blocks of 3 weights and tables of 7 rows of 2, by the first letter's scope; tables are in capitals."""
    blocks = [Block(n, (Parameter(n, (3,), torch.zeros(3)),)) for n in names if n.islower()]
    tables = [Table(n, 7, 2, torch.zeros(7, 2), lambda items, _: items[..., None]) for n in names if n.isupper()]
    return Layout(blocks, lambda name: SCOPES[name[0].lower()], {}, tables)


def touched(found: Layout) -> dict[str, TouchedRows]:
    data = toy(4, np.array([len(items) for items in ITEMS]), items=7)
    data._rows["item"][:] = np.concatenate(ITEMS)
    data._rows["part"][:] = Part.TRAIN
    rows = ShardRows.of(data, dtype=torch.float32, device=CPU)
    return {table.name: TouchedRows.of(table, rows) for table in found.tables}


def users(*numbers: int) -> Array:
    return np.array(numbers, np.int64)


KEEP = Settings(keep_optimizer=True)


@pytest.mark.parametrize(
    ("names", "settings", "columns", "tables"),
    [
        ("s", Settings(), (0, 0, 0, 0), {}),
        ("ps", Settings(), (3, 0, 0, 0), {}),
        ("pskf", Settings(), (3, 3, 0, 1), {}),
        ("ps", KEEP, (3, 0, 2 * 6 + 1, 0), {}),
        ("psPSKF", Settings(), (3, 0, 0, 1), {"P": 2, "K": 2}),
        ("psPSKF", KEEP, (3, 0, 13, 1), {"P": 6, "S": 4, "K": 6}),
    ],
)
def test_columns_follow_from_the_scopes(
    names: str, settings: Settings, columns: tuple[int, ...], tables: dict[str, int]
) -> None:
    found = layout(*names)
    assert DeviceStore.columns(found, settings) == dict(
        zip(("personal", "kept", "moments", "took_part"), columns, strict=True)
    )
    assert DeviceStore.table_columns(found, settings) == tables


def store(folder: Path, found: Layout, settings: Settings | None = None) -> DeviceStore:
    folder.mkdir()
    return DeviceStore.create(folder, found, touched(found), 4, settings or Settings())


def test_rows_of_a_table_are_those_a_user_trained(tmp_path: Path) -> None:
    """Users touched 2, 0, 1 and 2 rows: five in the store, dense for computing, zero past a user's own."""
    found = layout("p", "P")
    devices, here = store(tmp_path / "store", found), touched(found)
    assert devices.size == 3
    assert devices.tables["P"].read(np.arange(5)).shape == (5, 2)
    values = np.arange(1.0, 17.0, dtype=np.float32).reshape(4, 2, 2)
    devices.begin(np.arange(4), here)
    devices.write_table("P", here["P"], np.arange(4), values)
    devices.write(np.arange(4), np.ones((4, 3), np.float32))
    devices.commit()
    assert devices.tables["P"].read(np.arange(5)).tolist() == [[1, 2], [3, 4], [9, 10], [13, 14], [15, 16]]
    again = devices.read_table("P", here["P"], users(3, 2, 1), 3)
    assert again is not None
    assert again.tolist() == [
        [[13, 14], [15, 16], [0, 0]],
        [[9, 10], [0, 0], [0, 0]],
        [[0, 0], [0, 0], [0, 0]],
    ]
    assert devices.read_table("S", here["P"], users(0), 2) is None


def write(devices: DeviceStore, here: dict[str, TouchedRows], who: Array, value: float) -> None:
    devices.begin(who, here)
    devices.write(who, np.full((len(who), devices.size), value, np.float32))
    devices.write_table("P", here["P"], who, np.full((len(who), 2, 2), value, np.float32))
    devices.commit()


def everything(devices: DeviceStore) -> tuple[Any, Any]:
    return devices.read(np.arange(4))[:, 0].tolist(), devices.tables["P"].read(np.arange(5))[:, 0].tolist()


def test_who_sits_out_keeps_its_values_and_the_best_is_kept(tmp_path: Path) -> None:
    found = layout("p", "P")
    devices, here = store(tmp_path / "store", found), touched(found)
    write(devices, here, users(0, 2), 1.0)
    write(devices, here, users(3), 2.0)
    assert everything(devices) == ([1, 0, 1, 2], [1, 1, 1, 2, 2])
    devices.mark_best()
    for value in (3.0, 4.0, 5.0):
        write(devices, here, users(0, 1, 2, 3), value)
    assert everything(devices) == ([5, 5, 5, 5], [5, 5, 5, 5, 5])
    (tmp_path / "run").mkdir()
    devices.save(tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "personal-P.safetensors",
        "personal.safetensors",
    ]
    opened = DeviceStore.open(tmp_path / "run", found, here, 4, Settings())
    assert everything(opened) == ([1, 0, 1, 2], [1, 1, 1, 2, 2])


def test_erasing_writes_zeros_over_one_user_alone(tmp_path: Path) -> None:
    found = layout("p", "P")
    devices, here = store(tmp_path / "store", found), touched(found)
    write(devices, here, users(0, 1, 2, 3), 7.0)
    devices.mark_best()
    (tmp_path / "run").mkdir()
    devices.save(tmp_path / "run")
    opened = DeviceStore.open(tmp_path / "run", found, here, 4, Settings())
    assert opened.erase(tmp_path / "run", 3, here) == 3 + 2 * 2
    after = DeviceStore.open(tmp_path / "run", found, here, 4, Settings())
    assert everything(after) == ([7, 7, 7, 0], [7, 7, 7, 0, 0])
    assert after.erase(tmp_path / "run", 3, here) == 0
    assert after.erase(tmp_path / "run", 1, here) == 3  # who touched nothing has no rows


@pytest.mark.parametrize("name", ["personal.safetensors", "personal-P.safetensors"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    found = layout("p", "P")
    devices, here = store(tmp_path / "store", found), touched(found)
    (tmp_path / "run").mkdir()
    devices.save(tmp_path / "run")
    (tmp_path / "run" / name).unlink()
    with pytest.raises(ArtifactError, match=f"{name}: cannot be opened"):
        DeviceStore.open(tmp_path / "run", found, here, 4, Settings())


def test_a_file_says_what_its_columns_are(tmp_path: Path) -> None:
    found = layout("p", "k", "P")
    devices = store(tmp_path / "store", found, KEEP)
    assert devices.best.metadata == {"p": "3", "(kept)": "3", "(moments)": "13", "(took_part)": "1"}
    assert devices.tables["P"].best.metadata == {"P": "6"}


def test_a_method_that_keeps_nothing_has_no_files(tmp_path: Path) -> None:
    found = layout("s", "S")
    devices, here = store(tmp_path / "store", found), touched(found)
    devices.begin(np.arange(4), here)
    devices.write(np.arange(4), np.zeros((4, 0), np.float32))
    devices.commit()
    devices.mark_best()
    assert not list(tmp_path.glob("**/*.safetensors"))
    assert devices.erase(tmp_path, 0, here) == 0
