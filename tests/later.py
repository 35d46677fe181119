"""A small data set, and the same a while later: new rows, users and items, changed groups, and users who left."""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import pytest

from fedpa.adaptation import adapt
from fedpa.data.dataset import PRIVATE, Dataset
from fedpa.data.prepare import prepare
from fedpa.data.source import Source
from fedpa.data.sources import open_source
from fedpa.data.synthetic import synthesise
from fedpa.models.foundation import Foundation
from fedpa.models.pretrain import pretrain
from fedpa.run import Run

GROUP = "register_days_range"
PLAIN: dict[str, Any] = {"reader": "none", "item_embedding": False, "embedding": 8, "weight_decay": 0.0, "epochs": 2}
QUICK: dict[str, Any] = {"rounds": 3, "patience": 0, "lr": 0.05, "item_counts": 0}


class Later(NamedTuple):
    """What was, and what is today.

    Attributes
    ----------
    source : Source
        Of today.
    first, today : Dataset
    foundation : Foundation
        Trained on `first`.
    new_users, left, moved, new_items : list of int
        Ids; the left and moved ones were private.
    folder : Path
    """

    source: Source
    first: Dataset
    today: Dataset
    foundation: Foundation
    new_users: list[int]
    left: list[int]
    moved: list[int]
    new_items: list[int]
    folder: Path

    @property
    def foundation_path(self) -> Path:
        """Where the foundation is."""
        return self.folder / "foundation"

    def run(self, out: Path | None = None, **settings: Any) -> Run:
        """Adapt the foundation to the first data set."""
        return adapt(self.foundation, self.first, out=out, foundation_path=self.foundation_path, **QUICK | settings)


def later(factory: pytest.TempPathFactory) -> Later:
    """The same for every test of a session."""
    return _later(factory.getbasetemp() / "later")


@cache
def _later(folder: Path) -> Later:
    synthesise(folder / "raw", users=160, items=60, rows_per_user=20, seed=0)
    source = open_source("kuairand-pure", folder / "raw")
    source = dataclasses.replace(source, oracle=None)
    assert source.users is not None
    assert source.items is not None
    log = source.interactions.collect()
    ids, items = log["user_id"].unique().sort(), log["item_id"].unique().sort()
    cut = int(log["time"].quantile(0.7))  # type: ignore[arg-type]
    new_users, new_items = ids[5::40].to_list(), items[3::20].to_list()
    then = without(source, new_users, new_items)
    first = prepare(then, folder / "first", until=cut)
    private = first.user_ids.filter(pl.Series(first.side == PRIVATE))
    left, moved = private[2::30].to_list(), private[4::30].to_list()
    values = [str(value) for value in first.manifest["groups"][GROUP]["vocabulary"]]
    shifted = pl.col(GROUP).replace_strict(dict(zip(values, values[1:] + values[:1], strict=True)), default=None)
    users = source.users.with_columns(pl.when(pl.col("user_id").is_in(moved)).then(shifted).otherwise(pl.col(GROUP)))
    source = without(dataclasses.replace(source, users=users), left, [])
    today = prepare(source, folder / "today", like=first)
    foundation = pretrain(first, out=folder / "foundation", **PLAIN)
    return Later(source, first, today, foundation, new_users, left, moved, new_items, folder)


def without(source: Source, users: list[int], items: list[int]) -> Source:
    """A source that knows nothing of some users and items."""
    keep = ~pl.col("user_id").is_in(users)
    known = ~pl.col("item_id").is_in(items)
    assert source.users is not None
    assert source.items is not None
    return dataclasses.replace(
        source,
        interactions=source.interactions.filter(keep & known),
        users=source.users.filter(keep),
        items=source.items.filter(known),
    )
