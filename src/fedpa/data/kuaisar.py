"""KuaiSAR in its official file layout: recommendation (R) or search (S) interactions.

Sun et al., *KuaiSAR: A Unified Search And Recommendation Dataset*, CIKM 2023. Licence CC BY-NC-SA 4.0.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import polars as pl

from fedpa.data.reading import scan_table
from fedpa.data.source import Feature, Source
from fedpa.errors import ConfigError, DataError

__all__ = ["load"]

_LOGS = {"R": "rec_inter.csv", "S": "src_inter.csv"}
_USERS, _ITEMS = "user_features.csv", "item_features.csv"
_GROUPS = ("search_active_level", "rec_active_level")
_USER_COLUMNS = (*_GROUPS, "onehot_feat1", "onehot_feat2")
_ITEM_COLUMNS = (
    "item_type",
    "upload_type",
    *(f"{level}_level_category_id" for level in ("first", "second", "third", "fourth")),
)


def load(raw: Path, part: Literal["R", "S"] = "R") -> Source:
    """Open the recommendation or the search log of KuaiSAR with its user and item tables.

    The label is ``click`` as logged in part R, and at least one click on the result in part S. Search also
    returns what no recommender shows, such as users and live streams: results without a row in the item table
    are left out.

    Parameters
    ----------
    raw : Path
        The folder of the CSV files.
    part : {"R", "S"}
        Which log.

    Raises
    ------
    DataError
        If a table is missing or is not what it must be.
    ConfigError
        If the part is unknown.
    """
    if part not in _LOGS:
        raise ConfigError(f"unknown KuaiSAR part {part!r}", "use R (recommendation) or S (search)")
    folder = next((place for place in (raw, raw / "KuaiSAR", raw / "KuaiSR") if (place / _LOGS[part]).is_file()), None)
    if folder is None:
        raise DataError(
            f"{raw}: no {_LOGS[part]}, the official log of KuaiSAR-{part}",
            "name the folder of its CSV files; files of another layout are read with the source `tables`",
        )
    users, items = folder / _USERS, folder / _ITEMS
    table = scan_table(items, {"item_id": pl.Int64, **dict.fromkeys(_ITEM_COLUMNS, pl.String)})
    notes = ["KuaiSAR is licensed CC BY-NC-SA 4.0: not for commercial use"]
    if part == "S":
        notes.append("search results that are not in the item table are left out")
    return Source(
        name=f"kuaisar-{part.lower()}",
        files=(folder / _LOGS[part], users, items),
        interactions=_recommended(folder) if part == "R" else _searched(folder, table),
        users=scan_table(users, {"user_id": pl.Int64, **dict.fromkeys(_USER_COLUMNS, pl.String)}),
        items=table,
        user_features=tuple(Feature(name) for name in _USER_COLUMNS),
        item_features=tuple(Feature(name) for name in _ITEM_COLUMNS),
        groups=_GROUPS,
        undated=(_USERS,),
        notes=tuple(notes),
    )


def _recommended(folder: Path) -> pl.LazyFrame:
    log = scan_table(
        folder / _LOGS["R"],
        {"user_id": pl.Int64, "item_id": pl.Int64, "timestamp": pl.Float64, "click": pl.Int8},
    )
    return log.select("user_id", "item_id", _milliseconds("timestamp"), "click")


def _searched(folder: Path, items: pl.LazyFrame) -> pl.LazyFrame:
    log = scan_table(
        folder / _LOGS["S"],
        {
            "user_id": pl.Int64,
            "item_id": pl.Int64,
            "search_session_timestamp": pl.Float64,
            "click_cnt": pl.Float64,
        },
    )
    click = (pl.col("click_cnt") > 0).cast(pl.Int8).alias("click")
    shown = log.select("user_id", "item_id", _milliseconds("search_session_timestamp"), click)
    return shown.join(items.select("item_id"), on="item_id", how="semi")


def _milliseconds(name: str) -> pl.Expr:
    return pl.col(name).cast(pl.Int64, strict=False).alias("time")
