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
from fedpa.federation.device import DeviceStore, gather
from fedpa.federation.parameters import FROZEN, PERSONAL, SHARED, Block, Layout, Parameter, Scope, Table
from fedpa.federation.rows import ShardRows
from fedpa.federation.store import Generation
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


def touched(found: Layout, who: Array | None = None) -> dict[str, TouchedRows]:
    data = toy(4, np.array([len(items) for items in ITEMS]), items=7)
    data._rows["item"][:] = np.concatenate(ITEMS)
    data._rows["part"][:] = Part.TRAIN
    rows = ShardRows.of(data, who, dtype=torch.float32, device=CPU)
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
    return DeviceStore.create(folder, found, touched(found), 4, settings or Settings())


def test_rows_of_a_table_are_those_a_user_trained(tmp_path: Path) -> None:
    """Users touched 2, 0, 1 and 2 rows: five in the store, dense for computing, zero past a user's own."""
    found = layout("p", "P")
    devices, here = store(tmp_path / "store", found), touched(found)
    assert devices.size == 3
    assert devices.tables["P"].read(np.arange(5)).shape == (5, 2)
    values = np.arange(1.0, 17.0, dtype=np.float32).reshape(4, 2, 2)
    devices.begin(np.arange(4), here, 1)
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


def write(devices: DeviceStore, here: dict[str, TouchedRows], number: int, who: Array, value: float) -> None:
    """A round in which some users write one value everywhere."""
    devices.begin(who, here, number)
    devices.write(who, np.full((len(who), devices.size), value, np.float32))
    devices.write_table("P", here["P"], who, np.full((len(who), 2, 2), value, np.float32))
    devices.commit()


def everything(devices: DeviceStore) -> tuple[Any, Any]:
    return devices.read(np.arange(4))[:, 0].tolist(), devices.tables["P"].read(np.arange(5))[:, 0].tolist()


def finished(tmp_path: Path, number: int) -> Path:
    """The folder of a run whose best round has this number."""
    run = tmp_path / "run"
    run.mkdir()
    gather([tmp_path / "store" / f"{number:06d}"], run)
    return run


def test_who_sits_out_keeps_its_values_and_the_best_is_kept(tmp_path: Path) -> None:
    found = layout("p", "P")
    devices, here = store(tmp_path / "store", found), touched(found)
    write(devices, here, 1, users(0, 2), 1.0)
    write(devices, here, 2, users(3), 2.0)
    assert everything(devices) == ([1, 0, 1, 2], [1, 1, 1, 2, 2])
    devices.keep = frozenset({2})
    for number in (3, 4, 5):
        write(devices, here, number, users(0, 1, 2, 3), float(number))
    assert everything(devices) == ([5, 5, 5, 5], [5, 5, 5, 5, 5])
    assert sorted(devices.held()) == [2, 4, 5]
    run = finished(tmp_path, 2)
    assert sorted(path.name for path in run.iterdir()) == ["personal-P.safetensors", "personal.safetensors"]
    opened = DeviceStore.open(run, found, here, 4, Settings())
    assert everything(opened) == ([1, 0, 1, 2], [1, 1, 1, 2, 2])


def test_a_round_starts_from_any_generation_that_is_kept(tmp_path: Path) -> None:
    """A round that is trained again replaces the one of its number, and nothing else."""
    found = layout("p", "P")
    devices, here = store(tmp_path / "store", found), touched(found)
    devices.begin_with_zeros(here)
    assert everything(devices) == ([0, 0, 0, 0], [0, 0, 0, 0, 0])
    devices.keep = frozenset({0, 1, 2})
    write(devices, here, 1, users(0), 1.0)
    write(devices, here, 2, users(1, 3), 2.0)
    devices.at(1)
    assert everything(devices) == ([1, 0, 0, 0], [1, 1, 0, 0, 0])
    write(devices, here, 2, users(2), 7.0)
    assert everything(devices) == ([1, 0, 7, 0], [1, 1, 7, 0, 0])
    devices.at(0)
    assert everything(devices) == ([0, 0, 0, 0], [0, 0, 0, 0, 0])
    devices.at(2)
    assert everything(devices) == ([1, 0, 7, 0], [1, 1, 7, 0, 0])
    again = store(tmp_path / "store", found)
    again.begin_with_zeros(here)  # there are generations already
    assert sorted(again.held()) == [0, 1, 2]
    again.at(2)
    assert everything(again) == ([1, 0, 7, 0], [1, 1, 7, 0, 0])


def test_what_is_not_committed_does_not_count(tmp_path: Path) -> None:
    found = layout("p", "P")
    devices, here = store(tmp_path / "store", found), touched(found)
    write(devices, here, 1, users(0), 1.0)
    devices.begin(users(0, 1), here, 2)
    devices.write(users(0, 1), np.full((2, 3), 9, np.float32))
    assert everything(devices) == ([1, 0, 0, 0], [1, 1, 0, 0, 0])
    assert sorted(devices.held()) == [1]
    again = store(tmp_path / "store", found)
    again.at(1)
    assert everything(again) == ([1, 0, 0, 0], [1, 1, 0, 0, 0])
    write(devices, here, 2, users(2), 3.0)  # the round is begun again
    assert everything(devices) == ([1, 0, 3, 0], [1, 1, 3, 0, 0])


def test_a_damaged_generation_is_not_read(tmp_path: Path) -> None:
    found = layout("p", "P")
    devices, here = store(tmp_path / "store", found), touched(found)
    devices.keep = frozenset({1})
    write(devices, here, 1, users(0), 1.0)
    write(devices, here, 2, users(0), 2.0)
    file = tmp_path / "store" / "000001" / "personal-P.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert sorted(devices.held()) == [2]
    with pytest.raises(ArtifactError, match=r"000001/personal-P\.safetensors: damaged"):
        devices.at(1)
    with pytest.raises(ArtifactError, match=r"000003/generation\.json: cannot be read"):
        devices.at(3)
    assert everything(devices) == ([2, 0, 0, 0], [2, 2, 0, 0, 0])


def test_a_finished_store_is_only_read_and_rounds_are_committed_within(tmp_path: Path) -> None:
    found = layout("p", "P")
    devices, here = store(tmp_path / "store", found), touched(found)
    with pytest.raises(ArtifactError, match="committed outside a round"):
        devices.commit()
    write(devices, here, 1, users(0), 1.0)
    opened = DeviceStore.open(finished(tmp_path, 1), found, here, 4, Settings())
    with pytest.raises(ArtifactError, match="only read"):
        opened.begin(users(0), here, 2)


def test_nodes_are_gathered_in_their_order(tmp_path: Path) -> None:
    """Two nodes of two users each: rows of users and of tables follow each other; a lone node's files are linked."""
    found, run = layout("p", "P"), tmp_path / "run"
    run.mkdir()
    folders = []
    for node, pair in enumerate((users(0, 1), users(2, 3))):
        here = touched(found, pair)
        devices = DeviceStore.create(tmp_path / str(node), found, here, 2, Settings())
        write(devices, here, 4, users(0, 1), node + 1.0)
        write(devices, here, 5, users(1), node + 5.0)
        folders.append(tmp_path / str(node) / "000005")
    gather(folders, run)
    opened = DeviceStore.open(run, found, touched(found), 4, Settings())
    assert everything(opened) == ([1, 5, 2, 6], [1, 1, 2, 6, 6])
    assert Generation(run / "personal.safetensors").metadata == {"p": "3"}
    assert sorted(path.name for path in run.iterdir()) == ["personal-P.safetensors", "personal.safetensors"]
    for _ in range(2):  # a run that was stopped after this does it again
        gather(folders[:1], run)
        assert sorted(path.name for path in run.iterdir()) == ["personal-P.safetensors", "personal.safetensors"]
        assert (run / "personal.safetensors").samefile(folders[0] / "personal.safetensors")


def test_erasing_writes_zeros_over_one_user_alone(tmp_path: Path) -> None:
    found = layout("p", "P")
    devices, here = store(tmp_path / "store", found), touched(found)
    write(devices, here, 1, users(0, 1, 2, 3), 7.0)
    run = finished(tmp_path, 1)
    opened = DeviceStore.open(run, found, here, 4, Settings())
    assert opened.erase(run, 3, here) == 3 + 2 * 2
    after = DeviceStore.open(run, found, here, 4, Settings())
    assert everything(after) == ([7, 7, 7, 0], [7, 7, 7, 0, 0])
    assert after.erase(run, 3, here) == 0
    assert after.erase(run, 1, here) == 3  # who touched nothing has no rows
    assert sorted(devices.held()) == [1]  # of which the run's files were links


def test_erasing_counts_from_the_first_user_of_the_files(tmp_path: Path) -> None:
    found = layout("p", "P")
    last, here = touched(found, users(2, 3)), touched(found)
    devices = DeviceStore.create(tmp_path / "store", found, last, 2, Settings())
    write(devices, last, 1, users(0, 1), 7.0)
    assert devices.erase(tmp_path / "store" / "000001", 3, here, first=2) == 3 + 2 * 2
    assert Generation(tmp_path / "store" / "000001" / "personal.safetensors").read(users(0, 1))[:, 0].tolist() == [7, 0]
    rows = Generation(tmp_path / "store" / "000001" / "personal-P.safetensors").read(np.arange(3))
    assert rows[:, 0].tolist() == [7, 0, 0]


@pytest.mark.parametrize("name", ["personal.safetensors", "personal-P.safetensors"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    found = layout("p", "P")
    devices, here = store(tmp_path / "store", found), touched(found)
    devices.begin_with_zeros(here)
    run = finished(tmp_path, 0)
    (run / name).unlink()
    with pytest.raises(ArtifactError, match=f"{name}: cannot be opened"):
        DeviceStore.open(run, found, here, 4, Settings())


def test_a_file_says_what_its_columns_are(tmp_path: Path) -> None:
    found = layout("p", "k", "P")
    devices = store(tmp_path / "store", found, KEEP)
    devices.begin_with_zeros(touched(found))
    assert devices.users.current is not None
    assert devices.users.current.metadata == {"p": "3", "(kept)": "3", "(moments)": "13", "(took_part)": "1"}
    of_table = devices.tables["P"].current
    assert of_table is not None
    assert of_table.metadata == {"P": "6"}


def test_a_method_that_keeps_nothing_has_no_files(tmp_path: Path) -> None:
    found = layout("s", "S")
    devices, here = store(tmp_path / "store", found), touched(found)
    devices.begin(np.arange(4), here, 1)
    devices.write(np.arange(4), np.zeros((4, 0), np.float32))
    devices.commit()
    assert sorted(devices.held()) == [1]
    assert not list(tmp_path.glob("**/*.safetensors"))
    assert devices.erase(tmp_path, 0, here) == 0
