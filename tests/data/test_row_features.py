"""Row features: read when asked for, known from open users, carried wherever rows go, and nowhere by default."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from fedpa.data.dataset import COLD, Dataset, Part, describe
from fedpa.data.leave_one_out import leave_one_out
from fedpa.data.prepare import prepare
from fedpa.data.pseudo import pseudo_private
from fedpa.data.source import Feature, Source
from fedpa.errors import ConfigError, DataError
from fedpa.federation.rows import ShardRows
from fedpa.federation.tally import Tally

Row = tuple[int, int, int, int, str | None, int]
"""User, item, time, click, surface, hour."""

OPENED, CLOSED = range(40), range(40, 70)
CPU: dict[str, Any] = {"dtype": torch.float32, "device": torch.device("cpu")}


def written() -> list[Row]:
    """Ten rows of every user, one in a hundred units of time; surface and hour are told by user and time."""
    random = np.random.default_rng(0)
    return [
        (user, int(random.integers(12)), 100 * nth + user, int(random.integers(2)), *told(user, 100 * nth + user))
        for user in (*OPENED, *CLOSED)
        for nth in range(10)
    ]


def told(user: int, time: int) -> tuple[str | None, int]:
    """Open users are on surfaces x and y, private ones also on z, and nobody knows the surface of the last row."""
    nth = time // 100
    surface = None if nth == 9 else "z" if user in CLOSED and nth == 4 else "xy"[nth % 2]
    return surface, nth % 3 + 8


def code(user: int, time: int) -> list[int]:
    """Codes in the vocabularies x, y and 8, 9, 10."""
    surface, hour = told(user, time)
    return [{"x": 1, "y": 2}.get(surface or "", 0), hour - 7]


def source(rows: Sequence[Row], **changes: Any) -> Source:
    schema = {"user_id": pl.Int64, "item_id": pl.Int64, "time": pl.Int64, "click": pl.Int8}
    log = pl.LazyFrame(rows, schema=schema | {"surface": pl.String, "hour": pl.Int64}, orient="row")
    users = pl.LazyFrame({"user_id": range(70), "city": [f"c{user % 3}" for user in range(70)]})
    items = pl.LazyFrame({"item_id": range(12), "tag": [f"t{item % 4}" for item in range(12)]})
    made = Source(
        name="hand",
        files=(),
        interactions=log,
        users=users,
        items=items,
        user_features=(Feature("city"),),
        item_features=(Feature("tag"),),
        row_features=("surface", "hour"),
        groups=("city",),
    )
    return dataclasses.replace(made, **changes)


def made(folder: Path, rows: Sequence[Row] | None = None, **settings: Any) -> Dataset:
    division = folder / "division.csv"
    sides = [f"{user},{'private' if user in CLOSED else 'open'}" for user in (*OPENED, *CLOSED)]
    division.write_text("\n".join(["user_id,side", *sides]) + "\n")
    chosen: dict[str, Any] = {"row_features": ("surface", "hour"), "division": division} | settings
    return prepare(source(rows or written()), folder / "out", **chosen)


def content(data: Dataset) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(data.path.iterdir())}


def expected(data: Dataset, rows: np.ndarray[Any, Any] | slice = slice(None)) -> list[list[int]]:
    """By hand, for rows of a data set whose times were not changed."""
    users = data.user_ids.to_numpy()[data.user[rows]]
    return [code(int(user), int(time)) for user, time in zip(users, data.time[rows], strict=True)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return made(tmp_path_factory.mktemp("rows"), cold_users=0.3)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return made(tmp_path_factory.mktemp("plain"), cold_users=0.3, row_features=())


def test_codes_by_hand_stand_behind_those_of_the_counts(data: Dataset, plain: Dataset) -> None:
    assert [tuple(feature) for feature in data.context_features[4:]] == [("row:surface", 3), ("row:hour", 4)]
    assert data.row_features == data.context_features[4:]
    assert data.row_codes.tolist() == data.context_codes[:, 4:].tolist() == expected(data)
    assert data.context_codes[:, :4].tolist() == plain.context_codes.tolist()
    assert data.context_codes.dtype == np.int16
    assert data.n_item_context == 2
    assert data.encode_user(data.user_views, data.user_clicks, 1, 1).shape == (data.n_rows, 2)


def test_what_holds_the_data_set_names_them(data: Dataset) -> None:
    facts = data.manifest["features"]["context"][4:]
    assert [each["vocabulary"] for each in facts] == [["x", "y"], ["8", "9", "10"]]
    assert data.manifest["settings"]["row_features"] == ["surface", "hour"]
    assert describe(data)["features"]["context"]["row:surface"] == 3
    stored = pl.read_parquet(data.path / "interactions.parquet")
    assert stored.columns[-2:] == ["row:surface", "row:hour"]
    assert stored["row:surface"].to_list() == data.row_codes[:, 0].tolist()


def test_by_default_there_are_none(plain: Dataset, data: Dataset, tmp_path: Path) -> None:
    assert plain.row_features == ()
    assert plain.row_codes.shape == (plain.n_rows, 0)
    assert len(plain.context_features) == 4
    assert "row_features" not in plain.manifest["settings"]
    both = content(plain).keys() & content(data).keys()
    assert {name for name in both if content(plain)[name] != content(data)[name]} == {
        "interactions.parquet",
        "manifest.json",
    }
    division = tmp_path / "division.csv"
    division.write_bytes((plain.path.parent / "division.csv").read_bytes())
    bare = source(written(), row_features=())
    bare = dataclasses.replace(bare, interactions=bare.interactions.drop("surface", "hour"))
    assert content(prepare(bare, tmp_path / "out", division=division, cold_users=0.3)) == content(plain)


def test_vocabularies_know_open_users_alone(tmp_path: Path) -> None:
    before = made(tmp_path).manifest["features"]
    changed = [(*row[:4], f"private {row[4]}", 99) if row[0] in CLOSED else row for row in written()]
    after = made(tmp_path, changed, overwrite=True)
    assert after.manifest["features"]["context"] == before["context"]
    private = np.isin(after.user_ids.to_numpy()[after.user], CLOSED)
    assert not after.row_codes[private].any()
    assert after.row_codes[~private].tolist() == expected(after, ~private)


def test_rows_that_differ_in_row_features_alone_are_one(tmp_path: Path) -> None:
    rows = written()
    again = [(*row[:4], "x", 7) for row in rows[::3]]
    for name, log in (("one", rows + again), ("two", (rows + again)[::-1])):
        (tmp_path / name).mkdir()
        made(tmp_path / name, log, row_features=("hour",))
    one, two = (Dataset(tmp_path / name / "out") for name in ("one", "two"))
    assert content(one) == content(two)
    assert one.n_rows == len(rows)
    assert one.manifest["counts"]["dropped"]["repeats"] == len(again)
    assert one.manifest["features"]["context"][4]["vocabulary"] == ["7", "8", "9", "10"]
    assert (one.row_codes == 1).sum() == len(again)


def test_what_is_not_offered_is_refused_and_what_is_offered_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="row_features: found 'day', hand offers surface, hour"):
        made(tmp_path, row_features=["surface", "day"])
    with pytest.raises(ConfigError, match="found 'hour', hand offers none"):
        prepare(source(written(), row_features=()), tmp_path / "out", row_features=["hour"])
    with pytest.raises(DataError, match="no column 'day'"):
        prepare(source(written(), row_features=("day",)), tmp_path / "out")


def test_pseudo_private_users_keep_theirs(data: Dataset, plain: Dataset, tmp_path: Path) -> None:
    pseudo = pseudo_private(data, tmp_path / "out")
    assert pseudo.row_features == data.row_features
    assert pseudo.row_codes.tolist() == expected(pseudo)
    assert set(np.unique(pseudo.part)) >= {Part.FOUNDATION, Part.TRAIN, Part.TEST}
    assert pseudo.manifest["features"]["context"][4:] == data.manifest["features"]["context"][4:]
    assert pseudo_private(plain, tmp_path / "plain").row_features == ()


def test_drawn_rows_take_those_of_the_click_beside_them(data: Dataset, tmp_path: Path) -> None:
    task = leave_one_out(data, tmp_path / "out", negatives=3)
    assert task.row_features == data.row_features
    # A user's clicks have times of their own, by which it is told whose row features these are.
    assert task.row_codes.tolist() == expected(task)
    assert (task.label == 0).sum() == 3 * (task.label == 1).sum()


def test_rows_of_cold_users_keep_them(data: Dataset, plain: Dataset) -> None:
    assert (data.side == COLD).any()
    for support in (0, 3):
        rows, others = (ShardRows.cold(each, support, **CPU) for each in (data, plain))
        assert rows.context[:, 4:].tolist() == expected(data, rows.row)
        assert rows.context[:, :4].tolist() == others.context.tolist()


@pytest.mark.parametrize("counts", ["everybody's", "own"])
def test_rows_with_other_counts_keep_them(data: Dataset, plain: Dataset, counts: str) -> None:
    def encoded(dataset: Dataset) -> ShardRows:
        rows = ShardRows.of(dataset, **CPU)
        if counts == "own":
            return rows.online(dataset)
        known = rows.items.numpy(), rows.time, rows.labels.numpy(), rows.part == Part.TRAIN
        return rows.counted(dataset, Tally.of(dataset, 4, *known))

    rows = encoded(data)
    assert rows.context[:, 4:].tolist() == expected(data, rows.row)
    assert rows.context[:, :4].tolist() == encoded(plain).context.tolist()
    assert rows.context.tolist() != ShardRows.of(data, **CPU).context.tolist()


def test_candidates_are_shown_where_the_judged_row_was(data: Dataset, plain: Dataset) -> None:
    rows, others = (ShardRows.of(each, **CPU) for each in (data, plain))
    judged = np.flatnonzero(rows.part == Part.TEST)[:7]
    found, plainly = rows.candidates(data, judged), others.candidates(plain, judged)
    assert found.context.shape == (7 * data.n_items, 6)
    assert found.context[:, :4].tolist() == plainly.context.tolist()
    assert found.context[:, 4:].tolist() == np.repeat(expected(data, rows.row[judged]), data.n_items, 0).tolist()


def test_those_of_now_are_those_of_the_latest_row(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    latest = [data.row_codes_now(data.user_index(user)).tolist() for user in (3, 50)]
    assert latest == [code(3, 903), code(50, 950)] == [[0, 1], [0, 1]]
    random = data.part.copy()
    random[data.time >= 700] = Part.UNBIASED
    monkeypatch.setitem(data.__dict__, "part", random)
    assert data.row_codes_now(data.user_index(50)).tolist() == code(50, 650) == [1, 1]
    monkeypatch.setitem(data.__dict__, "part", np.full(data.n_rows, Part.UNUSED))
    assert data.row_codes_now(data.user_index(50)).tolist() == [0, 0]


def test_randomly_exposed_rows_have_them_too(tmp_path: Path) -> None:
    exposed = source([(user, 3, 10_000, 1, "y", 10) for user in CLOSED]).interactions
    data = prepare(source(written(), random_exposure=exposed), tmp_path / "out", row_features=["hour", "surface"])
    random = data.rows(Part.UNBIASED)
    assert len(random)
    assert data.row_codes[random].tolist() == [[3, 2]] * len(random)
