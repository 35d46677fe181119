"""The personal store: generations, earlier ones, forgetting, damage, and room on the disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from arrays import Array
from fedpa.errors import ArtifactError
from fedpa.federation.store import Generation, PersonalStore


def rows(*numbers: int) -> Array:
    return np.array(numbers, np.int64)


def turn(store: PersonalStore, folder: Path, who: Array, values: Array) -> Path:
    """One round in which some users write; returns the file of its generation."""
    path = folder / f"{len(list(folder.iterdir()))}.safetensors"
    store.begin(path, who)
    store.write(who, values)
    store.open(path)
    return path


def advance(store: PersonalStore, folder: Path, writers: dict[int, float]) -> Path:
    """One round in which some users write one value everywhere."""
    values = np.repeat(np.array([*writers.values()], np.float32)[:, None], store.size, 1)
    return turn(store, folder, rows(*writers), values)


def first(store: PersonalStore, users: int) -> list[float]:
    values: list[float] = store.read(np.arange(users))[:, 0].tolist()
    return values


def test_a_round_writes_beside_what_it_reads(tmp_path: Path) -> None:
    store = PersonalStore(3, 2, "float32")
    assert first(store, 3) == [0, 0, 0]
    path = tmp_path / "1.safetensors"
    store.begin(path, rows(0, 1))
    store.write(rows(0), np.ones((1, 2), np.float32))
    assert first(store, 3) == [0, 0, 0]
    store.write(rows(1), np.full((1, 2), 2, np.float32))
    assert first(store, 3) == [0, 0, 0]
    store.open(path)
    assert first(store, 3) == [1, 2, 0]


def test_users_who_do_not_write_keep_their_values(tmp_path: Path) -> None:
    store = PersonalStore(4, 2, "float32")
    expected = [0.0] * 4
    for writers in ({0: 1.0, 1: 2.0}, {1: 3.0}, {2: 4.0}, {0: 5.0, 3: 6.0}, {}, {1: 7.0}):
        advance(store, tmp_path, writers)
        for user, value in writers.items():
            expected[user] = value
        assert first(store, 4) == expected


def test_an_earlier_generation_is_never_written_to(tmp_path: Path) -> None:
    store = PersonalStore(2, 1, "float32")
    paths = [advance(store, tmp_path, {0: number}) for number in range(1, 4)]
    before = [path.read_bytes() for path in paths]
    for number in range(4, 9):
        advance(store, tmp_path, {0: number, 1: number})
        assert first(store, 2) == [number, number]
    assert [path.read_bytes() for path in paths] == before
    store.open(paths[1])
    assert first(store, 2) == [2, 0]
    advance(store, tmp_path, {1: 9})
    assert first(store, 2) == [2, 9]
    store.open(None)
    assert first(store, 2) == [0, 0]


def test_a_generation_is_a_new_file(tmp_path: Path) -> None:
    store = PersonalStore(2, 1, "float32")
    path = advance(store, tmp_path, {0: 1.0})
    with pytest.raises(FileExistsError):
        store.begin(path, rows(0))
    assert first(store, 2) == [1, 0]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.dictionaries(st.integers(0, 5), st.integers(1, 99)), st.integers(0, 9)), min_size=1, max_size=12
    )
)
def test_any_run_of_rounds(tmp_path_factory: pytest.TempPathFactory, history: list[tuple[dict[int, int], int]]) -> None:
    """Every round starts from some generation that there is, the last or an earlier one; all stay as they were."""
    folder = tmp_path_factory.mktemp("store")
    store = PersonalStore(6, 1, "float32")
    known: list[tuple[Path | None, list[float]]] = [(None, [0.0] * 6)]
    for writers, back in history:
        path, values = known[max(0, len(known) - 1 - back)]
        store.open(path)
        made = advance(store, folder, {user: float(value) for user, value in writers.items()})
        known.append((made, [float(writers.get(user, value)) for user, value in enumerate(values)]))
        assert first(store, 6) == known[-1][1]
    for path, values in known:
        store.open(path)
        assert first(store, 6) == values


def test_a_file_is_safetensors_with_its_header(tmp_path: Path) -> None:
    store = PersonalStore(3, 2, "float64", {"user_bias": "1"})
    path = turn(store, tmp_path, rows(1), np.array([[0.5, -2.0]]))
    loaded = safetensors.numpy.load_file(path)
    assert loaded["personal"].tolist() == [[0, 0], [0.5, -2.0], [0, 0]]
    reopened = Generation(path)
    assert reopened.metadata == {"user_bias": "1"}
    assert reopened.shape == (3, 2)
    view = PersonalStore.view(path, 3, 2, "float64")
    assert view.read(rows(1, 1)).tolist() == [[0.5, -2.0]] * 2


def test_forgetting_writes_zeros(tmp_path: Path) -> None:
    store = PersonalStore(3, 4, "float32")
    path = advance(store, tmp_path, {0: 1.0, 1: 2.0, 2: 3.0})
    generation = Generation(path, writable=True)
    generation.write(rows(1), np.zeros((1, 4), np.float32))
    generation.flush()
    found = Generation(path).read(rows(0, 1, 2))
    assert found[:, 0].tolist() == [1, 0, 3]
    assert np.float32(2.0).tobytes() * 4 not in path.read_bytes()


def test_what_was_read_is_a_copy(tmp_path: Path) -> None:
    store = PersonalStore(2, 2, "float32")
    advance(store, tmp_path, {0: 1.0})
    found = store.read(rows(0))
    found[:] = 9
    assert first(store, 2) == [1, 0]


def test_a_million_users(tmp_path: Path) -> None:
    users, size = 1_000_000, 3
    store = PersonalStore(users, size, "float32")
    some = rows(0, 500_000, 999_999)
    path = tmp_path / "1.safetensors"
    store.begin(path, np.arange(users))
    store.write(some, np.ones((3, size), np.float32))
    store.open(path)
    assert 4 * users * size < path.stat().st_size < 4 * users * size + 4096
    assert path.stat().st_blocks * 512 >= 4 * users * size  # reserved, no holes
    assert store.read(some).sum() == 3 * size
    assert not store.read(rows(1, 499_999, 999_998)).any()
    assert PersonalStore.view(path, users, size, "float32").read(some).sum() == 3 * size


def test_rows_in_any_order_and_in_runs(tmp_path: Path) -> None:
    store = PersonalStore(9, 2, "float32")
    for who in (rows(3, 4, 5, 8), rows(7, 2, 3, 1), rows(0), rows()):
        values = np.arange(2.0 * len(who), dtype=np.float32).reshape(-1, 2) + 1
        turn(store, tmp_path, who, values)
        assert (store.read(who) == values).all()
    assert (store.read(rows(4, 6)) == [[3, 4], [0, 0]]).all()


@pytest.mark.parametrize("keep", [0, 4, 20, -1])
def test_a_file_cut_short_is_refused(tmp_path: Path, keep: int) -> None:
    content = advance(PersonalStore(3, 2, "float32"), tmp_path, {0: 1.0}).read_bytes()
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(content[:keep])
    with pytest.raises(ArtifactError, match=r"cut\.safetensors: cut short"):
        Generation(cut)


@pytest.mark.parametrize(
    "header", [b"not json", b"[]", b"{}", b'{"personal": {"dtype": "I8", "shape": [3, 2], "data_offsets": [0, 24]}}']
)
def test_a_header_that_is_none_is_refused(tmp_path: Path, header: bytes) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(24))
    with pytest.raises(ArtifactError, match=r"bad\.safetensors"):
        Generation(path)


def test_a_missing_file_and_another_shape_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"none\.safetensors: cannot be opened"):
        Generation(tmp_path / "none.safetensors")
    path = advance(PersonalStore(3, 2, "float32"), tmp_path, {0: 1.0})
    for users, size in ((4, 2), (3, 1)):
        with pytest.raises(ArtifactError, match=f"holds 3 users of 2 weights, expected {users} of {size}"):
            PersonalStore.view(path, users, size, "float32")


def test_another_type_is_refused(tmp_path: Path) -> None:
    path = advance(PersonalStore(3, 2, "float32"), tmp_path, {0: 1.0})
    with pytest.raises(ArtifactError, match="holds float32, expected float64"):
        PersonalStore.view(path, 3, 2, "float64")


def test_writing_outside_a_round_is_refused(tmp_path: Path) -> None:
    store = PersonalStore(3, 2, "float32")
    with pytest.raises(ArtifactError, match="outside a round"):
        store.write(rows(0), np.zeros((1, 2), np.float32))
    advance(store, tmp_path, {0: 1.0})
    with pytest.raises(ArtifactError, match="outside a round"):
        store.write(rows(0), np.zeros((1, 2), np.float32))


def test_methods_without_personal_parameters_need_no_file(tmp_path: Path) -> None:
    store = PersonalStore(3, 0, "float32")
    turn(store, tmp_path, rows(0), np.zeros((1, 0), np.float32))
    assert store.read(rows(0, 1)).shape == (2, 0)
    assert list(tmp_path.iterdir()) == []
    assert PersonalStore.view(None, 3, 0, "float32").read(rows(2)).shape == (1, 0)


def test_an_empty_shard_has_a_store(tmp_path: Path) -> None:
    store = PersonalStore(0, 4, "float32")
    turn(store, tmp_path, rows(), np.zeros((0, 4), np.float32))
    assert store.read(rows()).shape == (0, 4)
