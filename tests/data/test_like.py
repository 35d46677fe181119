"""Later data of the same kind: what a foundation was trained on keeps its meaning, and nobody changes sides."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from fedpa.data.dataset import COLD, OPEN, PRIVATE, Dataset, Part
from fedpa.data.prepare import prepare
from fedpa.data.source import Feature, Reference, Source
from fedpa.data.statistics import COUNTS
from fedpa.errors import ConfigError, DataError

DAY = 100
CUTS: dict[str, Any] = {"cuts": (4 * DAY, 5 * DAY), "until": 6 * DAY}


def make(
    users: range = range(60),
    items: range = range(100, 120),
    days: int = 6,
    moved: tuple[int, ...] = (),
    gone: tuple[int, ...] = (),
    **changes: Any,
) -> Source:
    """Every user has rows on every day. The first five live in a town of their own; those who `moved` elsewhere."""
    random = np.random.default_rng(0)
    rows = [
        (user, int(random.integers(items.start, items.stop)), day * DAY + int(random.integers(DAY)), (user + day) % 2)
        for day in range(days)
        for user in range(200)
        if user in users and user not in gone
    ]
    towns = {user: "abc"[(user + (user in moved)) % 3] for user in users} | dict.fromkeys(range(5), "a0") | {99: "new"}
    town = [towns[user] for user in users]
    return (
        Source(
            name="hand",
            files=(),
            interactions=pl.LazyFrame(
                rows,
                schema={"user_id": pl.Int64, "item_id": pl.Int64, "time": pl.Int64, "click": pl.Int8},
                orient="row",
            ).with_columns(page=(pl.col("user_id") % 2).cast(pl.String)),
            users=pl.LazyFrame({"user_id": users, "town": town, "age": [float(user) for user in users]}),
            items=pl.LazyFrame(
                {"item_id": items, "kind": ["xyz"[item % 3] if item < 120 else "new" for item in items]}
            ),
            user_features=(Feature("town"), Feature("age", "numeric")),
            item_features=(Feature("kind"),),
            row_features=("page",),
            groups=("town",),
        )
        if not changes
        else dataclasses.replace(make(users, items, days, moved, gone), **changes)
    )


@pytest.fixture
def first(tmp_path: Path) -> Dataset:
    return prepare(make(days=4), tmp_path / "first", cold_users=0.2, row_features=["page"], seed=3)


def by_id(data: Dataset) -> dict[int, int]:
    return dict(zip(data.user_ids.to_list(), data.side.tolist(), strict=True))


def test_the_same_data_give_the_same_files(tmp_path: Path, first: Dataset) -> None:
    again = prepare(make(days=4), tmp_path / "again", like=first)
    for name in first.manifest["files"]:
        assert (first.path / name).read_bytes() == (again.path / name).read_bytes()
    assert again.manifest["settings"]["like"] == first.hash


def test_encoders_and_sides_are_those_of_before(tmp_path: Path, first: Dataset) -> None:
    source = make(range(5, 100), range(100, 125), moved=(7, 8), gone=(9,))
    today = prepare(source, tmp_path / "today", like=first, **CUTS)
    for key in ("features", "groups", "label", "labels"):
        assert today.manifest[key] == first.manifest[key]
    before, after = by_id(first), by_id(today)
    kept = before.keys() & after.keys()
    assert kept == set(range(5, 60)) - {9}
    assert {before[user] for user in kept} == {OPEN, PRIVATE, COLD}
    assert all(before[user] == after[user] for user in kept)
    assert {after[user] for user in after.keys() - kept} == {PRIVATE}
    assert today.manifest["counts"]["since"] == {
        "users": {"known": 54, "new": 40, "left": 6},
        "items": {"known": 20, "new": 5, "left": 0},
        "changed": {"town": 2},
    }
    held_out = [set(data.user_ids.gather(data.user[data.rows("foundation_val")])) for data in (first, today)]
    assert held_out[1] == {user for user in held_out[0] if user in kept}


def test_codes_of_new_and_changed_values(tmp_path: Path, first: Dataset) -> None:
    today = prepare(make(range(5, 100), range(100, 125), moved=(7,)), tmp_path / "today", like=first, **CUTS)
    group = today.groups["town"]
    assert [group[today.user_index(user)] for user in (6, 7, 99)] == [1, 4, 0]
    assert first.groups["town"][first.user_index(7)] == 3
    assert today.user_codes[today.user_index(99), 0] == 0
    assert today.user_codes[today.user_index(99), 1] == 1 + len(first.manifest["features"]["user"][1]["edges"])
    known = today.item_ids.to_numpy() < 120
    assert (today.item_codes[known] == first.item_codes).all()
    assert (today.item_codes[~known] == 0).all()


def test_days(tmp_path: Path, first: Dataset) -> None:
    today = prepare(make(days=9), tmp_path / "today", like=first, **CUTS)
    private = today.side[today.user] == PRIVATE
    day = today.time // DAY
    assert day.max() == 5
    for part, days in ((Part.TRAIN, {0, 1, 2, 3}), (Part.VAL, {4}), (Part.TEST, {5})):
        assert set(day[private & (today.part == part)]) == days
    assert set(day[np.isin(today.part, (Part.FOUNDATION, Part.FOUNDATION_VAL))]) == {0, 1, 2, 3}
    settings = today.manifest["settings"]
    assert (settings["cuts"], settings["until"], settings["split"]) == ([400, 500], 600, "global-time")


def test_counts_know_nothing_of_later_rows(tmp_path: Path, first: Dataset) -> None:
    """Later days and their clicks change no count and no code of an earlier row; counts are those of rows before it."""
    one = prepare(make(days=6), tmp_path / "one", like=first, **CUTS)
    changed = make(days=9)
    flipped = pl.when(pl.col("time") >= 5 * DAY).then(1 - pl.col("click")).otherwise("click").cast(pl.Int8)
    changed = dataclasses.replace(changed, interactions=changed.interactions.with_columns(click=flipped))
    two = prepare(changed, tmp_path / "two", like=first, cuts=(400, 500))
    early = two.time < 6 * DAY
    assert (one.context_codes == two.context_codes[early]).all()
    for name in COUNTS:
        assert (getattr(one, name) == getattr(two, name)[early]).all()
    opened = one.side[one.user] == OPEN
    for row in one.rows("test")[:20]:
        counted = opened & (one.time < 4 * DAY) & (one.time < one.time[row])
        assert one.open_views[row] == counted.sum()
        assert one.item_clicks[row] == (counted & (one.item == one.item[row]) & (one.label == 1)).sum()
        own = (one.user == one.user[row]) & (one.time < 5 * DAY)
        assert one.user_views[row] == own.sum()


def test_min_rows_and_a_file_are_for_new_users(tmp_path: Path, first: Dataset) -> None:
    (tmp_path / "division.csv").write_text("user_id,side\n0,private\n1,private\n70,open\n71,private\n")
    source = make(range(75), days=2)
    today = prepare(source, tmp_path / "named", like=first, division=tmp_path / "division.csv")
    before, after = by_id(first), by_id(today)
    assert after == before | {70: OPEN, 71: PRIVATE}
    assert set(by_id(prepare(source, tmp_path / "few", like=first, min_rows=3))) == set(before)


@pytest.mark.parametrize(
    ("source", "arguments", "message"),
    [
        ({}, {"division": "random"}, "division: known users keep their sides"),
        ({}, {"features": "reference"}, "features: found 'reference'"),
        ({}, {"groups": ["age"]}, r"groups: found \['age'\]"),
        ({}, {"cold_users": 0.1}, r"cold_users: found 0\.1, but .* has 0\.2"),
        ({}, {"seed": 4}, "seed: found 4, but .*first has 3"),
        ({"name": "foot"}, {}, "its name: found foot, but .*first was made of hand"),
        ({"user_features": (Feature("town"),)}, {}, "its user features: found"),
        ({"labels": ("click", "page")}, {}, "its labels: found"),
        ({"row_features": ()}, {}, "offers no row feature 'page'"),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, first: Dataset, source: Any, arguments: Any, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        prepare(make(**source), tmp_path / "out", like=first, **arguments)
    assert not (tmp_path / "out").exists()


def test_what_was_set_before_may_be_said_again(tmp_path: Path, first: Dataset) -> None:
    said: dict[str, Any] = {"cold_users": 0.2, "row_features": ["page"], "seed": 3, "groups": ["town"]}
    assert (
        prepare(make(), tmp_path / "one", like=first, **said).hash == prepare(make(), tmp_path / "two", like=first).hash
    )


def test_text_ids_are_no_numbers(tmp_path: Path, first: Dataset) -> None:
    text = pl.col("user_id").cast(pl.String)
    source = make()
    assert source.users is not None
    source = dataclasses.replace(
        source, users=source.users.with_columns(text), interactions=source.interactions.with_columns(text)
    )
    with pytest.raises(DataError, match="its user ids are Int64, today's are String"):
        prepare(source, tmp_path / "out", like=first)


def test_the_published_encoding_knows_no_new_values(tmp_path: Path) -> None:
    source = make(reference=Reference(("town",), ("kind",), ()))
    reference = prepare(source, tmp_path / "reference", features="reference")
    with pytest.raises(ConfigError, match="has no code for a value that is new"):
        prepare(source, tmp_path / "out", like=reference)
