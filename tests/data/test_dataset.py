"""Opening a prepared folder, asking it, and refusing a damaged one."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from fedpa.data.dataset import OPEN, PARTS, Dataset, Part, describe, load_dataset
from fedpa.data.prepare import prepare
from fedpa.data.source import Feature, Source
from fedpa.errors import ArtifactError, DataError


def make(folder: Path, features: str = "causal") -> Dataset:
    random = np.random.default_rng(1)
    log = pl.LazyFrame(
        {
            "user_id": random.integers(0, 30, 600) * 10,
            "item_id": random.integers(0, 8, 600),
            "time": random.integers(0, 500, 600),
            "click": random.integers(0, 2, 600).astype(np.int8),
        }
    )
    source = Source(
        name="hand",
        files=(),
        interactions=log,
        users=pl.LazyFrame({"user_id": range(0, 300, 10), "city": [f"c{n % 4}" for n in range(30)]}),
        items=pl.LazyFrame({"item_id": range(9), "tag": [f"t{n % 3}" for n in range(9)]}),
        user_features=(Feature("city"),),
        item_features=(Feature("tag"), Feature("item_id")),
        groups=("city",),
        notes=("a note",),
    )
    return prepare(source, folder, cold_users=0.2)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make(tmp_path_factory.mktemp("data") / "out")


def test_shapes_and_types(data: Dataset) -> None:
    assert (data.n_users, data.n_items) == (30, 9)
    assert data.user_codes.shape == (30, 1)
    assert data.item_codes.shape == (9, 2)
    assert data.context_codes.shape == (data.n_rows, 4)
    types = (data.user_codes, data.item_codes, data.context_codes, data.user, data.time, data.label, data.part)
    assert [array.dtype.name for array in types] == [
        "int32",
        "int32",
        "int16",
        "uint32",
        "int64",
        "int8",
        "uint8",
    ]
    assert [feature.name for feature in data.context_features] == [
        "item_rate",
        "item_views",
        "user_rate",
        "user_views",
    ]
    for codes, features in (
        (data.user_codes, data.user_features),
        (data.item_codes, data.item_features),
        (data.context_codes, data.context_features),
    ):
        assert (codes.max(axis=0) < [feature.size for feature in features]).all()
    assert data.groups["city"].shape == (30,)
    assert data.oracle is None
    assert list(data.labels) == ["click"]
    assert "30 users" in repr(data)


def test_rows_of_parts_and_users(data: Dataset) -> None:
    counts = data.manifest["counts"]["parts"]
    assert {name: len(data.rows(name)) for name in PARTS} == counts
    both = data.rows("train", Part.VAL)
    assert (both == np.flatnonzero(np.isin(data.part, [Part.TRAIN, Part.VAL]))).all()
    assert (data.user[data.user_starts[:-1]] == np.arange(30)).all()
    assert data.user_starts[-1] == data.n_rows
    with pytest.raises(DataError, match="no part 'dev', expected one of foundation"):
        data.rows("dev")


def test_users_and_items_are_found_by_id(data: Dataset) -> None:
    assert data.user_index(250) == data.user_index("250") == 25
    assert data.item_index(8) == 8
    for wrong in (5, "5", "x", 10_000, 2**80):
        with pytest.raises(DataError, match=rf"no user {wrong!r} among its 30 users"):
            data.user_index(wrong)


def test_item_context_is_what_a_row_at_that_time_would_read(data: Dataset) -> None:
    times = np.array([400, 0, 499, 250, 250])
    codes = data.item_context(times)
    assert codes.shape == (5, 9, 2)
    for place, time in enumerate(times):
        rows = np.flatnonzero(data.time == time)
        assert (codes[place][data.item[rows]] == data.context_codes[rows, :2]).all()
    assert (codes[3] == codes[4]).all()
    assert (codes[1] == codes[1][0]).all()
    assert data.item_context(np.zeros(0, np.int64)).shape == (0, 9, 2)


def test_user_context_now_counts_all_own_rows(data: Dataset) -> None:
    opened = data.side[data.user] == OPEN
    views = np.bincount(data.user)
    clicks = np.bincount(data.user, weights=data.label).astype(int)
    expected = data.encode_user(views, clicks, int(opened.sum()), int(data.label[opened].sum()))
    assert (data.user_context_now() == expected).all()


def test_a_cold_users_test_rows_know_nothing_until_support_is_counted(data: Dataset) -> None:
    rows = data.rows("cold_test")
    assert len(rows)
    assert (data.user_views[rows] == 0).all()
    opened = data.open_views[rows], data.open_clicks[rows]
    nothing = np.zeros(len(rows))
    assert (data.encode_user(nothing, nothing, *opened) == data.context_codes[rows, 2:]).all()
    assert (data.encode_user(nothing + 5, nothing, *opened)[:, 0] < data.context_codes[rows, 2]).all()


def test_describe_says_what_is_in_it(data: Dataset) -> None:
    content = describe(data)
    assert content["features"]["item"] == {"tag": 4, "item_id": 10}
    assert content["groups"] == data.group_sizes
    assert content["notes"] == ["a note"]
    assert content["counts"]["users"] == 30
    json.dumps(content)


def test_verify_reads_every_file(tmp_path: Path) -> None:
    made = make(tmp_path / "out")
    made.verify()
    path = made.path / "splits.parquet"
    content = bytearray(path.read_bytes())
    content[10] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(ArtifactError, match=r"splits\.parquet: its SHA-256 is"):
        load_dataset(made.path).verify()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def scramble(path: Path) -> None:
    path.write_bytes(b"x" * path.stat().st_size)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (Path.unlink, "missing from the data set"),
        (cut, "bytes, the manifest says"),
        (scramble, "not readable as parquet"),
    ],
)
def test_a_damaged_folder_is_refused(tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    made = make(tmp_path / "out")
    damage(made.path / "users.parquet")
    with pytest.raises(ArtifactError, match=rf"users\.parquet: .*{message}"):
        load_dataset(made.path)


def test_damage_inside_a_file_is_named_when_it_is_read(tmp_path: Path) -> None:
    made = make(tmp_path / "out")
    path = made.path / "interactions.parquet"
    content = path.read_bytes()
    path.write_bytes(content[:4] + b"\xff" * 2000 + content[2004:])
    with pytest.raises(ArtifactError, match=r"interactions\.parquet: cannot read column 'user'"):
        _ = load_dataset(made.path).user


@pytest.mark.parametrize(
    ("change", "message"), [({"format_version": 99}, "format version 99"), ({"kind": "run"}, "expected a dataset")]
)
def test_another_manifest_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    made = make(tmp_path / "out")
    path = made.path / "manifest.json"
    path.write_text(json.dumps(made.manifest | change))
    with pytest.raises(ArtifactError, match=message):
        Dataset.load(made.path)


def test_a_manifest_without_what_it_must_say_is_refused(tmp_path: Path) -> None:
    made = make(tmp_path / "out")
    rest = {key: value for key, value in made.manifest.items() if key != "files"}
    (made.path / "manifest.json").write_text(json.dumps(rest))
    with pytest.raises(ArtifactError, match=r"manifest\.json: lacks 'files'"):
        Dataset.load(made.path)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is not a folder"):
        load_dataset(tmp_path / "none")
