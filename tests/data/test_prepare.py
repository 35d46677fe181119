"""From raw tables to a folder: nothing lost, nothing leaked, nothing left to chance."""

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpa.artifacts import sha256
from fedpa.data.dataset import COLD, OPEN, PRIVATE, Dataset, Part
from fedpa.data.prepare import prepare
from fedpa.data.source import Feature, FeatureDivision, Reference, Source
from fedpa.errors import ArtifactError, ConfigError, DataError

OPEN_USERS, PRIVATE_USERS = range(10, 18), range(20, 28)
USERS = [*OPEN_USERS, *PRIVATE_USERS]
ITEMS = range(100, 106)

Row = tuple[int, int, int, int]
ROWS = st.lists(
    st.tuples(st.sampled_from(USERS), st.sampled_from(ITEMS[:-1]), st.integers(0, 20), st.integers(0, 1)),
    max_size=60,
)
EVERYBODY: list[Row] = [(user, 100 + user % 5, user % 7, user % 2) for user in USERS]


def log(rows: list[Row]) -> pl.LazyFrame:
    schema = {"user_id": pl.Int64, "item_id": pl.Int64, "time": pl.Int64, "click": pl.Int8}
    frame = pl.DataFrame(rows, schema=schema, orient="row")
    return frame.with_columns(like=(pl.col("item_id") % 2).cast(pl.Int8)).lazy()


def make(rows: list[Row], **changes: Any) -> Source:
    users = pl.DataFrame(
        {
            "user_id": USERS,
            "city": ["a" if user % 3 else "b" for user in USERS],
            "age": [float(user) for user in USERS],
            "degree": ["high" if user in OPEN_USERS else "full" for user in USERS],
        }
    )
    items = pl.DataFrame({"item_id": ITEMS, "tag": ["x", "y", None, "x", "y", "z"], "length": range(6)})
    source = Source(
        name="hand",
        files=(),
        interactions=log(rows),
        users=users.lazy(),
        items=items.lazy(),
        labels=("click", "like"),
        user_features=(Feature("city"), Feature("age", "numeric")),
        item_features=(Feature("tag"), Feature("length", "numeric")),
        groups=("city",),
        reference=Reference(("city",), ("tag", "length"), ("length",)),
        division=FeatureDivision("degree", ("high",)),
    )
    return dataclasses.replace(source, **changes)


def division_file(folder: Path) -> Path:
    path = folder / "division.csv"
    lines = [f"{user},{'open' if user in OPEN_USERS else 'private'}" for user in USERS]
    path.write_text("\n".join(["user_id,side", *lines, "99,open"]) + "\n")
    return path


def rich(rows: int = 400, seed: int = 0) -> list[Row]:
    """Many rows, some of them twice."""
    random = np.random.default_rng(seed)
    columns = [random.choice(USERS, rows), random.choice(ITEMS[:-1], rows), random.integers(0, 1000, rows)]
    made = [tuple(row) for row in np.stack([*columns, random.integers(0, 2, rows)], axis=1).tolist()]
    return [*EVERYBODY, *made, *made[:20]]


def raw_rows(data: Dataset) -> list[Row]:
    users, items = data.user_ids.to_numpy()[data.user], data.item_ids.to_numpy()[data.item]
    return list(zip(users.tolist(), items.tolist(), data.time.tolist(), data.label.tolist(), strict=True))


@settings(max_examples=25, deadline=None)
@given(
    ROWS,
    st.integers(1, 3),
    st.sampled_from(["per-user", "global-time"]),
    st.sampled_from([False, 0.3]),
    st.sampled_from(["feature", "random"]),
)
def test_no_row_is_lost_or_doubled(
    rows: list[Row], min_rows: int, split: Any, cold: bool | float, division: Any
) -> None:
    rows = EVERYBODY + rows + EVERYBODY[:3]
    with tempfile.TemporaryDirectory() as folder:
        try:
            data = prepare(
                make(rows),
                Path(folder) / "out",
                min_rows=min_rows,
                split=split,
                cold_users=cold,
                division=division,
            )
        except DataError as error:
            assert "are left" in error.message
            return
        distinct, kept, dropped = set(rows), raw_rows(data), data.manifest["counts"]["dropped"]
        n_rows = {user: sum(row[0] == user for row in distinct) for user in USERS}
        expected = sorted(row for row in distinct if n_rows[row[0]] >= min_rows)
        assert sorted(kept) == expected
        assert dropped["repeats"] == len(rows) - len(distinct)
        assert dropped["min_rows"] == len(distinct) - len(expected)
        assert len(kept) + sum(dropped.values()) == len(rows) == data.manifest["counts"]["rows_read"]
        order = list(zip(data.user.tolist(), data.time.tolist(), strict=True))
        assert order == sorted(order)


@settings(max_examples=10, deadline=None)
@given(ROWS, ROWS, st.integers(0, 99))
def test_nothing_of_the_foundation_depends_on_private_users(rows: list[Row], others: list[Row], shift: int) -> None:
    opened = [row for row in EVERYBODY + rows if row[0] in OPEN_USERS]
    hidden = [row for row in EVERYBODY + rows if row[0] in PRIVATE_USERS]
    changed = [(row[0], row[1], 20 - row[2], 1 - row[3]) for row in hidden]
    changed += [row for row in others if row[0] in PRIVATE_USERS]
    before = make(opened + hidden)
    assert before.users is not None
    private = pl.col("user_id").is_in(list(PRIVATE_USERS))
    users = before.users.with_columns(
        pl.when(private).then(pl.lit(f"city {shift}")).otherwise("city").alias("city"),
        pl.when(private).then(pl.col("age") * shift).otherwise("age").alias("age"),
    )
    after = make(opened + changed, users=users)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        division = division_file(folder)
        one = prepare(before, folder / "one", division=division)
        two = prepare(after, folder / "two", division=division)
        assert one.manifest["features"] == two.manifest["features"]
        assert one.manifest["groups"] == two.manifest["groups"]
        assert (one.path / "items.parquet").read_bytes() == (two.path / "items.parquet").read_bytes()
        assert open_part(one) == open_part(two)


def open_part(data: Dataset) -> tuple[bytes, bytes, bytes]:
    users = pl.read_parquet(data.path / "users.parquet").filter(pl.col("side") == "open")
    rows = pl.read_parquet(data.path / "interactions.parquet").with_columns(part=data.part)
    rows = rows.filter(pl.Series(data.side[data.user] == OPEN))
    context = data.context_codes[data.side[data.user] == OPEN]
    return users.write_csv().encode(), rows.write_csv().encode(), context.tobytes()


@pytest.mark.parametrize("features", ["causal", "reference"])
@pytest.mark.parametrize("split", ["per-user", "global-time"])
def test_equal_input_gives_equal_bytes_in_any_order(tmp_path: Path, features: Any, split: Any) -> None:
    rows = rich()
    assert make(rows).users is not None
    shuffled = make(rows[::-1], users=make(rows).users.reverse())  # type: ignore[union-attr]
    arguments: dict[str, Any] = {"features": features, "split": split, "cold_users": 0.3}
    one = prepare(make(rows), tmp_path / "one", **arguments)
    two = prepare(shuffled, tmp_path / "two", **arguments)
    names = sorted(path.name for path in one.path.iterdir())
    assert names == sorted(path.name for path in two.path.iterdir())
    assert [sha256(one.path / name) for name in names] == [sha256(two.path / name) for name in names]
    assert one.hash == two.hash
    assert prepare(make(rows), tmp_path / "three", seed=1, **arguments).hash != one.hash


def test_labels_of_test_rows_move_no_feature(tmp_path: Path) -> None:
    rows = rich()
    division = division_file(tmp_path)
    one = prepare(make(rows), tmp_path / "one", division=division)
    tested = {row for row, part in zip(raw_rows(one), one.part, strict=True) if part == Part.TEST}
    late = {row for row in tested if (*row[:3], 1 - row[3]) not in set(rows)}
    changed = [(*row[:3], 1 - row[3]) if row in late else row for row in rows]
    two = prepare(make(changed), tmp_path / "two", division=division)
    assert len(late) > 10
    assert (one.context_codes == two.context_codes).all()
    assert (one.part == two.part).all()
    assert one.manifest["features"] == two.manifest["features"]


def test_ten_percent_of_the_open_users_validate_the_foundation(tmp_path: Path) -> None:
    rows = [(user, 100, time, user % 2) for user in range(2000) for time in (1, 2)]
    users = pl.LazyFrame({"user_id": range(2000), "city": ["a"] * 2000, "age": [1.0] * 2000})
    data = prepare(make(rows, users=users, division=None), tmp_path / "out")
    held_out, learned = (set(data.user[data.rows(part)]) for part in (Part.FOUNDATION_VAL, Part.FOUNDATION))
    assert not held_out & learned
    assert len(held_out) / len(held_out | learned) == pytest.approx(0.1, abs=0.03)
    assert data.manifest["settings"]["division"] == {"by": "random"}
    assert "half of the users" in data.manifest["warnings"][0]


def test_the_division_file_rules(tmp_path: Path) -> None:
    data = prepare(make(rich()), tmp_path / "out", division=division_file(tmp_path), cold_users=True)
    sides = dict(zip(data.user_ids, data.side.tolist(), strict=True))
    assert all(sides[user] == OPEN for user in OPEN_USERS)
    assert {sides[user] for user in PRIVATE_USERS} == {PRIVATE, COLD}
    (tmp_path / "few.csv").write_text("user_id,side\n10,open\n20,private\n")
    few = prepare(make(rich()), tmp_path / "few", division=tmp_path / "few.csv")
    assert few.user_ids.to_list() == [10, 20]
    assert few.manifest["counts"]["dropped"]["not_in_division"] == len(set(rich())) - few.n_rows
    assert few.manifest["settings"]["division"]["name"] == "few.csv"
    assert few.n_items == len(ITEMS)


@pytest.mark.parametrize(("side", "missing"), [("open", "private"), ("private", "open")])
def test_both_sides_are_needed(tmp_path: Path, side: str, missing: str) -> None:
    (tmp_path / "d.csv").write_text(f"user_id,side\n10,{side}\n")
    with pytest.raises(DataError, match=rf"d\.csv: no {missing} users are left"):
        prepare(make(rich()), tmp_path / "out", division=tmp_path / "d.csv")
    assert not (tmp_path / "out").exists()


def test_random_rows_are_judged_but_never_counted(tmp_path: Path) -> None:
    rows, division = rich(), division_file(tmp_path)
    exposed: list[Row] = [(20, 105, 500, 1), (20, 105, 500, 1), (20, 100, -1, 1), (10, 105, 5, 1)]
    without = prepare(make(rows), tmp_path / "without", division=division)
    data = prepare(make(rows, random_exposure=log(exposed)), tmp_path / "with", division=division)
    unbiased = data.rows("unbiased")
    dropped = data.manifest["counts"]["dropped"]
    assert [raw_rows(data)[row][1:3] for row in unbiased] == [(100, -1), (105, 500)]
    assert (dropped["random_repeats"], dropped["random_not_private"]) == (1, 1)
    standard = np.setdiff1d(np.arange(data.n_rows), unbiased)
    assert (data.context_codes[standard] == without.context_codes).all()
    assert (data.part[standard] == without.part).all()
    assert (data.user_context_now() == without.user_context_now()).all()
    row = unbiased[1]
    mine = (without.user == data.user[row]) & (without.part <= Part.VAL) & (without.time < 500)
    assert data.user_views[row] == mine.sum()
    opened = (without.side[without.user] == OPEN) & (without.time < 500)
    assert (data.open_views[row], data.item_views[row]) == (opened.sum(), 0)
    late = prepare(make(rows, random_exposure=log(exposed)), tmp_path / "late", division=division, split="global-time")
    assert late.manifest["counts"]["dropped"]["random_before_test"] == 2


def test_reference_features_code_whole_tables(tmp_path: Path) -> None:
    data = prepare(make(rich()), tmp_path / "out", features="reference")
    assert [feature.size for feature in data.item_features] == [4, 100]
    assert data.item_codes[:, 0].tolist() == [1, 2, 0, 1, 2, 3]
    assert data.user_codes.shape == (len(USERS), 1)
    assert data.context_codes.shape == (data.n_rows, 0)
    assert data.group_sizes == {"city": 2}
    assert "length" in data.manifest["warnings"][0]
    with pytest.raises(ConfigError, match="no published encoding"):
        prepare(make(rich(), reference=None), tmp_path / "none", features="reference")


def test_groups_know_open_users_values_only(tmp_path: Path) -> None:
    source = make(rich())
    data = prepare(source, tmp_path / "out", groups=["degree"], division=division_file(tmp_path))
    assert data.group_sizes == {"degree": 2}
    assert (data.groups["degree"] == np.where(data.side == OPEN, 1, 0)).all()
    with pytest.raises(DataError, match=r"no column 'town'.*age, city, degree") as caught:
        prepare(source, tmp_path / "none", groups=["town"])
    assert caught.value.fix is not None


def test_ids_that_occur_are_the_table_where_there_is_none(tmp_path: Path) -> None:
    bare: dict[str, Any] = {"users": None, "items": None, "user_features": (), "item_features": (), "groups": ()}
    data = prepare(make(rich(), **bare, reference=None, division=None), tmp_path / "out")
    assert data.user_ids.to_list() == USERS
    assert data.item_ids.to_list() == list(ITEMS[:-1])
    assert data.user_codes.shape == (len(USERS), 0)
    text = log(rich()).with_columns(pl.col("user_id", "item_id").cast(pl.String))
    bare |= {"interactions": text}
    texts = prepare(make([], **bare, reference=None, division=None), tmp_path / "text")
    assert texts.user_index("10") == texts.user_index(10) == 0


@pytest.mark.parametrize("piece", [7, 1 << 21])
def test_the_oracle_follows_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    monkeypatch.setattr("fedpa.data.rows._PIECE", piece)
    rows = rich()
    share = (pl.col("item_id") * 1000 + pl.col("time")) / 1e6
    oracle = log(rows).select("user_id", "item_id", "time", probability=share)
    data = prepare(make(rows, oracle=oracle), tmp_path / "out")
    assert data.oracle is not None
    expected = (data.item_ids.to_numpy()[data.item] * 1000 + data.time) / 1e6
    assert data.oracle.tolist() == pytest.approx(expected.tolist())
    with pytest.raises(DataError, match="the oracle lacks"):
        prepare(make(rows, oracle=oracle.head(5)), tmp_path / "none")


def test_another_label_is_predicted_and_counted(tmp_path: Path) -> None:
    data = prepare(make(rich()), tmp_path / "out", label="like")
    assert data.label_names == ("like", "click")
    assert (data.label == data.item_ids.to_numpy()[data.item] % 2).all()
    assert ((data.item_clicks == data.item_views) | (data.label == 0)).all()


def test_raw_files_are_named_without_their_folder(tmp_path: Path) -> None:
    (tmp_path / "b.csv").write_text("b")
    (tmp_path / "a.csv").write_text("aa")
    source = make(rich(), files=(tmp_path / "b.csv", tmp_path / "a.csv"))
    data = prepare(source, tmp_path / "out")
    assert [(each["name"], each["bytes"]) for each in data.manifest["raw"]] == [("a.csv", 2), ("b.csv", 1)]
    assert str(tmp_path) not in (data.path / "manifest.json").read_text()


def test_global_time_needs_open_rows_before_the_cut(tmp_path: Path) -> None:
    rows = [(user, 100, 1 if user in PRIVATE_USERS else 2, 1) for user in USERS]
    with pytest.raises(DataError, match="no rows are left for part"):
        prepare(make(rows), tmp_path / "out", division=division_file(tmp_path), split="global-time")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"features": "all"}, "features: found 'all', expected causal or reference"),
        ({"split": "random"}, "split: found 'random', expected per-user or global-time"),
        ({"min_rows": 0}, "min_rows: found 0, expected 1 or more"),
        ({"cold_users": 1.0}, r"cold_users: found 1\.0"),
        ({"label": "share"}, "label: found 'share', hand has click, like"),
        ({"seed": -1}, "seed: found -1"),
    ],
)
def test_settings_out_of_range_are_refused(tmp_path: Path, arguments: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        prepare(make(EVERYBODY), tmp_path / "out", **arguments)


def test_an_existing_folder_is_kept_unless_overwritten(tmp_path: Path) -> None:
    one = prepare(make(rich()), tmp_path / "out")
    with pytest.raises(ArtifactError, match="already exists"):
        prepare(make(rich()), tmp_path / "out")
    assert prepare(make(rich()), tmp_path / "out", overwrite=True).hash == one.hash
