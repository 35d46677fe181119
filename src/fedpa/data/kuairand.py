"""KuaiRand-Pure, -1K and -27K in their official file layout.

Gao et al., *KuaiRand: An Unbiased Sequential Recommendation Dataset with Randomly Exposed Videos*, CIKM 2022.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import polars as pl

from fedpa.data.reading import scan_table
from fedpa.data.source import Feature, FeatureDivision, Reference, Source
from fedpa.errors import ConfigError, DataError

__all__ = ["DIVISION", "LABELS", "REFERENCE", "Variant", "load"]

Variant = Literal["pure", "1k", "27k"]

LABELS = {
    "click": "is_click",
    "long_view": "long_view",
    "like": "is_like",
    "follow": "is_follow",
    "comment": "is_comment",
    "forward": "is_forward",
    "hate": "is_hate",
    "profile_enter": "is_profile_enter",
}
"""Labels that the logs hold, and their columns."""

_STANDARD = ("log_standard_4_08_to_4_21", "log_standard_4_22_to_5_08")
_RANDOM = "log_random_4_22_to_5_08"
_USERS, _BASIC, _STATISTIC = "user_features", "video_features_basic", "video_features_statistic"
_HOUR, _LOCAL = 3_600_000, 8  # milliseconds, and hours from universal time to that of the log
_TITLES = {"pure": "KuaiRand-Pure", "1k": "KuaiRand-1K", "27k": "KuaiRand-27K"}

_RANGES = ("follow_user_num", "fans_user_num", "friend_user_num", "register_days")
_USER_TEXT = ("user_active_degree", *(f"{name}_range" for name in _RANGES))
_USER_WHOLE = (
    "is_lowactive_period",
    "is_live_streamer",
    "is_video_author",
    *(f"onehot_feat{number}" for number in range(18)),
)
_BINNED = ("play_duration", "comment_stay_duration", "complete_play_cnt")

REFERENCE = Reference(
    user=(
        "user_active_degree",
        "is_live_streamer",
        "is_video_author",
        *(f"{name}_range" for name in _RANGES),
        *(f"onehot_feat{number}" for number in range(18) if number not in (3, 8)),
    ),
    item=("upload_type", "music_type", "tag", *_BINNED),
    binned=_BINNED,
)
"""The columns that the published code reads, in its order."""

DIVISION = FeatureDivision("user_active_degree", ("high_active", "low_active", "middle_active", "single_low_active"))
"""The published division of users."""


def load(raw: Path, variant: Variant = "pure", labels: Sequence[str] = ("click",)) -> Source:
    """Open the logs and tables of one KuaiRand data set, whichever of its logs are there.

    ``author_id`` and ``music_id`` are left out: nearly as many values as items. Of an item's tags, ``tag``
    is the text as published and ``first_tag`` the first one. Where an oracle lies beside the logs, data are synthetic
    and so is the source's name.

    Row features are ``tab``, the surface on which the item is shown, if every log has it, and ``hour``, the local hour
    of ``time_ms``. The column ``hourmin`` is not read, because it knows the click: of KuaiRand-Pure's rows from 44 to
    49 minutes past an hour it gives 20% the next hour; 57% of these are clicked, of the others 41%.

    Parameters
    ----------
    raw : Path
        The folder of the CSV files, or the one that the archive was unpacked in.
    variant : {"pure", "1k", "27k"}
        Which of the three data sets.
    labels : sequence of str
        Names from `LABELS`; the first one is what models predict.

    Raises
    ------
    DataError
        If no standard log or no user or basic video table is there, or a table is not what it must be.
    ConfigError
        If a label or the variant is unknown.
    """
    if variant not in _TITLES:
        raise ConfigError(f"unknown KuaiRand variant {variant!r}", f"use one of {', '.join(_TITLES)}")
    unknown = [label for label in labels if label not in LABELS]
    if unknown or not labels:
        raise ConfigError(f"unknown label {unknown}", f"use some of {', '.join(LABELS)}")
    folder = _folder(raw, variant)
    found = {stem: _parts(folder, stem, variant) for stem in (*_STANDARD, _RANDOM, _STATISTIC)}
    logs = [path for stem in _STANDARD for path in found[stem]]
    users, basic = _required(folder, _USERS, variant), _required(folder, _BASIC, variant)
    oracle = folder / "oracle.parquet"
    tab = all(_has(path, "tab") for path in (*logs, *found[_RANDOM]))
    absent = [f"{stem}_{variant}.csv" for stem, paths in found.items() if not paths]
    notes = [f"found {', '.join(path.name for stem in (*_STANDARD, _RANDOM) for path in found[stem])}"]
    notes += [f"not found: {', '.join(absent)}"] if absent else []
    notes.append("author_id and music_id are not used: nearly one value per item")
    every = [*logs, *found[_RANDOM], *users, *basic, *found[_STATISTIC]]
    return Source(
        name="synthetic" if oracle.is_file() else f"kuairand-{variant}",
        files=(*every, oracle) if oracle.is_file() else tuple(every),
        interactions=_log(logs, labels, tab),
        users=_users(users),
        items=_items(basic, found[_STATISTIC]),
        labels=tuple(labels),
        user_features=(
            *(Feature(name) for name in (*_USER_TEXT, *_USER_WHOLE)),
            *(Feature(name, "numeric") for name in _RANGES),
        ),
        item_features=(
            *(Feature(name) for name in ("video_type", "upload_type", "music_type", "first_tag")),
            Feature("video_duration", "numeric"),
        ),
        row_features=("tab", "hour") if tab else ("hour",),
        groups=("follow_user_num_range", "register_days_range"),
        reference=REFERENCE if found[_STATISTIC] else None,
        division=DIVISION,
        random_exposure=_log(found[_RANDOM], labels, tab) if found[_RANDOM] else None,
        oracle=_oracle(oracle) if oracle.is_file() else None,
        undated=tuple(path.name for path in (*users, *found[_STATISTIC])),
        notes=tuple(notes),
    )


def _folder(raw: Path, variant: Variant) -> Path:
    title = _TITLES[variant]
    places = [raw, raw / "data", raw / title / "data", raw / title]
    for folder in places:
        if any(_parts(folder, stem, variant) for stem in _STANDARD):
            return folder
    message = f"{raw}: no standard log of {title}; expected {' or '.join(_STANDARD)}, ending in _{variant}.csv"
    for other, name in _TITLES.items():
        if other != variant and any(
            list(folder.glob(f"log_standard_*_{other}*.csv"))
            for folder in (raw, raw / "data", raw / name / "data", raw / name)
        ):
            raise DataError(message, f"this folder holds {name}: name the source kuairand-{other}")
    raise DataError(message, f"name the folder of its files, or run `fedpa data download kuairand-{variant}`")


def _parts(folder: Path, stem: str, variant: Variant) -> list[Path]:
    """The file of a table, or its parts in order."""
    whole = folder / f"{stem}_{variant}.csv"
    if whole.is_file():
        return [whole]
    numbered = {}
    for path in folder.glob(f"{stem}_{variant}_part*.csv"):
        if match := re.fullmatch(r".*_part(\d+)", path.stem):
            numbered[int(match[1])] = path
    gaps = sorted(set(range(1, max(numbered, default=0))) - numbered.keys())
    if gaps:
        raise DataError(
            f"{folder}: no {stem}_{variant}_part{gaps[0]}.csv, but a later part",
            "unpack the archive again",
        )
    return [numbered[number] for number in sorted(numbered)]


def _required(folder: Path, stem: str, variant: Variant) -> list[Path]:
    paths = _parts(folder, stem, variant)
    if not paths:
        raise DataError(f"{folder}: no {stem}_{variant}.csv", "put it beside the logs")
    return paths


def _scan(paths: Sequence[Path], columns: Mapping[str, type[pl.DataType]]) -> pl.LazyFrame:
    frames = [scan_table(path, columns) for path in paths]
    return frames[0] if len(frames) == 1 else pl.concat(frames)


def _has(path: Path, column: str) -> bool:
    return column in scan_table(path, {column: pl.Int64}, optional=(column,)).collect_schema()


def _log(paths: Sequence[Path], labels: Sequence[str], tab: bool) -> pl.LazyFrame:
    ids = {"user_id": pl.Int64, "video_id": pl.Int64, "time_ms": pl.Int64}
    columns: dict[str, type[pl.DataType]] = {**ids, **{LABELS[label]: pl.Int8 for label in labels}}
    columns |= {"tab": pl.Int64} if tab else {}
    named = {LABELS[label]: label for label in labels}
    log = _scan(paths, columns).rename({"video_id": "item_id", "time_ms": "time", **named})
    return log.with_columns(hour=(pl.col("time") // _HOUR + _LOCAL) % 24)


def _users(paths: Sequence[Path]) -> pl.LazyFrame:
    columns: dict[str, type[pl.DataType]] = {
        "user_id": pl.Int64,
        **dict.fromkeys(_USER_TEXT, pl.String),
        **dict.fromkeys((*_USER_WHOLE, *_RANGES), pl.Float64),
    }
    return _scan(paths, columns).with_columns(_whole(name) for name in _USER_WHOLE)


def _items(basic: Sequence[Path], statistic: Sequence[Path]) -> pl.LazyFrame:
    items = (
        _scan(
            basic,
            {
                "video_id": pl.Int64,
                "video_type": pl.String,
                "upload_type": pl.String,
                "video_duration": pl.Float64,
                "music_type": pl.Float64,
                "tag": pl.String,
            },
        )
        .with_columns(_whole("music_type"), first_tag=pl.col("tag").str.split(",").list.first())
        .rename({"video_id": "item_id"})
    )
    if not statistic:
        return items
    table = _scan(statistic, {"video_id": pl.Int64, **dict.fromkeys(_BINNED, pl.Float64)})
    return items.join(table.rename({"video_id": "item_id"}), on="item_id", how="left", maintain_order="left")


def _whole(name: str) -> pl.Expr:
    """A code that some files write as 1 and others, where values are missing, as 1.0."""
    return pl.col(name).cast(pl.Int64, strict=False)


def _oracle(path: Path) -> pl.LazyFrame:
    columns: dict[str, type[pl.DataType]] = {
        "user_id": pl.Int64,
        "video_id": pl.Int64,
        "time_ms": pl.Int64,
        "probability": pl.Float64,
    }
    return scan_table(path, columns).rename({"video_id": "item_id", "time_ms": "time"})
