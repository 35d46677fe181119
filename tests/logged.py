"""Prepared data sets from logs written by hand."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from fedpa.data.dataset import Dataset
from fedpa.data.prepare import prepare
from fedpa.data.source import Feature, Reference, Source

Row = tuple[int, int, int, int]
"""User, item, time, click."""


def logged(folder: Path, rows: Sequence[Row], private: Collection[int], *, items: int, **settings: Any) -> Dataset:
    """Prepare a log in which the users of `private` are private and all others are open.

    Ids are numbers: of users whatever occurs, of items 0 to ``items - 1``, so an item's id is its number.
    """
    schema = {"user_id": pl.Int64, "item_id": pl.Int64, "time": pl.Int64, "click": pl.Int8}
    frame = pl.DataFrame(rows, schema=schema, orient="row").with_columns(like=(pl.col("item_id") % 2).cast(pl.Int8))
    users = sorted({row[0] for row in rows})
    folder.mkdir(parents=True, exist_ok=True)
    division = folder / "division.csv"
    lines = [f"{user},{'private' if user in private else 'open'}" for user in users]
    division.write_text("\n".join(["user_id,side", *lines]) + "\n")
    source = Source(
        name="hand",
        files=(),
        interactions=frame.lazy(),
        users=pl.LazyFrame({"user_id": users, "city": [f"c{user % 3}" for user in users]}),
        items=pl.LazyFrame({"item_id": range(items), "tag": [f"t{item % 4}" for item in range(items)]}),
        labels=("click", "like"),
        user_features=(Feature("city"),),
        item_features=(Feature("tag"),),
        groups=("city",),
        reference=Reference(("city",), ("tag",), ()),
    )
    return prepare(source, folder / "dataset", division=division, **settings)


def many(users: int, rows: int, items: int, seed: int = 0, times: int = 10**6) -> list[Row]:
    """Random rows; every user has some."""
    random = np.random.default_rng(seed)
    user = np.concatenate([np.arange(users), random.integers(0, users, rows - users)])
    columns = [user, random.integers(0, items, rows), random.integers(0, times, rows), random.integers(0, 2, rows)]
    return [tuple(row) for row in np.stack(columns, axis=1).tolist()]
