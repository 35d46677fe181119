"""MovieLens 100K and 1M in their official file layout; a rating of 4 or 5 counts as a click.

Harper and Konstan, *The MovieLens Datasets: History and Context*, ACM TiiS 2015.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import polars as pl

from fedpa.data.reading import scan_table
from fedpa.data.source import Feature, Source
from fedpa.errors import ConfigError, DataError

__all__ = ["load"]

_GENRES_100K = (
    "unknown",
    "Action",
    "Adventure",
    "Animation",
    "Children's",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film-Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
)
_GENRES_1M = _GENRES_100K[1:]
_FILES = {"100k": ("u.data", "u.user", "u.item"), "1m": ("ratings.dat", "users.dat", "movies.dat")}
_LIKED = 4


def load(raw: Path, size: Literal["100k", "1m"] = "100k") -> Source:
    """Open MovieLens 100K or 1M.

    Users have gender, occupation and age (100K: the decade, ``age_range``; 1M: the published bracket);
    items the year of release and one yes-or-no feature per genre. Times are milliseconds.

    Parameters
    ----------
    raw : Path
        The folder of the files, or the one that the archive was unpacked in.
    size : {"100k", "1m"}
        Which data set.

    Raises
    ------
    DataError
        If a file is missing or is not what it must be.
    ConfigError
        If the size is unknown.
    """
    if size not in _FILES:
        raise ConfigError(f"unknown MovieLens size {size!r}", f"use one of {', '.join(_FILES)}")
    names = _FILES[size]
    if not raw.is_dir():
        raise DataError(
            f"{raw}: expected the folder of MovieLens {size.upper()}, but it is not a folder",
            "unpack the official archive and name its folder",
        )
    folder = next((place for place in (raw, raw / f"ml-{size}") if (place / names[0]).is_file()), None)
    if folder is None:
        raise DataError(
            f"{raw}: no {names[0]}, the ratings of MovieLens {size.upper()}", "name the folder of its files"
        )
    ratings, users, items = (folder / name for name in names)
    age = "age_range" if size == "100k" else "age"
    genres = _GENRES_100K if size == "100k" else _GENRES_1M
    return Source(
        name=f"movielens-{size}",
        files=(ratings, users, items),
        interactions=_ratings(ratings, size),
        users=_users_100k(users) if size == "100k" else _users_1m(users),
        items=_items_100k(items) if size == "100k" else _items_1m(items),
        user_features=(Feature("gender"), Feature(age), Feature("occupation")),
        item_features=(Feature("year", "numeric"), *(Feature(_flag(genre)) for genre in genres)),
        groups=("gender", age),
        undated=(users.name,),
        notes=("a rating of 4 or 5 counts as a click",),
    )


def _flag(genre: str) -> str:
    return "genre_" + genre.lower().replace("'", "").replace("-", "_")


def _ratings(path: Path, size: str) -> pl.LazyFrame:
    columns = {"user_id": pl.Int64, "item_id": pl.Int64, "rating": pl.Int64, "seconds": pl.Int64}
    ratings = (
        scan_table(path, columns, separator="\t", has_header=False) if size == "100k" else _double_colon(path, columns)
    )
    return ratings.select(
        "user_id",
        "item_id",
        (pl.col("seconds") * 1000).alias("time"),
        (pl.col("rating") >= _LIKED).cast(pl.Int8).alias("click"),
    )


def _double_colon(path: Path, columns: Mapping[str, type[pl.DataType]]) -> pl.LazyFrame:
    """Fields between ``::`` are fields between ``:`` with an empty one after each but the last."""
    spaced: dict[str, type[pl.DataType]] = {}
    for name, dtype in columns.items():
        if spaced:
            spaced[f"before {name}"] = pl.String
        spaced[name] = dtype
    return scan_table(path, spaced, separator=":", has_header=False).select(*columns)


def _users_100k(path: Path) -> pl.LazyFrame:
    columns: dict[str, type[pl.DataType]] = {
        "user_id": pl.Int64,
        "years": pl.Int64,
        "gender": pl.String,
        "occupation": pl.String,
        "zip": pl.String,
    }
    users = scan_table(path, columns, separator="|", has_header=False)
    decade = pl.col("years") // 10 * 10
    age_range = pl.format("{}-{}", decade, decade + 9).alias("age_range")
    return users.select("user_id", "gender", age_range, "occupation")


def _users_1m(path: Path) -> pl.LazyFrame:
    columns: dict[str, type[pl.DataType]] = {
        "user_id": pl.Int64,
        "gender": pl.String,
        "age": pl.String,
        "occupation": pl.String,
        "zip": pl.String,
    }
    return _double_colon(path, columns).select("user_id", "gender", "age", "occupation")


def _items_100k(path: Path) -> pl.LazyFrame:
    rows = []
    for line, fields in _latin1(path, "|", 5 + len(_GENRES_100K)):
        flags = dict(zip(map(_flag, _GENRES_100K), fields[5:], strict=True))
        rows.append({"item_id": _item_id(path, line, fields[0]), "year": _year(fields[2][-4:]), **flags})
    return _item_table(rows, _GENRES_100K)


def _items_1m(path: Path) -> pl.LazyFrame:
    rows = []
    for line, fields in _latin1(path, "::", 3):
        year = re.search(r"\((\d{4})\)\s*$", fields[1])
        has = set(fields[2].split("|"))
        unknown = sorted(has.difference(_GENRES_1M))
        if unknown:
            raise DataError(
                f"{path}, line {line}: genre {unknown[0]!r}, expected some of {', '.join(_GENRES_1M)}",
                "unpack the archive again",
            )
        flags = {_flag(genre): str(int(genre in has)) for genre in _GENRES_1M}
        rows.append(
            {
                "item_id": _item_id(path, line, fields[0]),
                "year": None if year is None else _year(year[1]),
                **flags,
            }
        )
    return _item_table(rows, _GENRES_1M)


def _latin1(path: Path, separator: str, width: int) -> list[tuple[int, list[str]]]:
    """Line number and fields of every line of a small table whose titles are in Latin-1."""
    if not path.is_file():
        raise DataError(f"{path}: no such file", "put it beside the ratings")
    lines = path.read_bytes().decode("latin-1").split("\n")
    rows = [(number, line.rstrip("\r").split(separator)) for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise DataError(f"{path}: empty file", "unpack the archive again")
    for number, fields in rows:
        if len(fields) != width:
            raise DataError(
                f"{path}, line {number}: {len(fields)} fields, expected {width}", "unpack the archive again"
            )
    return rows


def _item_id(path: Path, line: int, text: str) -> int:
    if not text.isdecimal():
        raise DataError(
            f"{path}, line {line}, column 'item_id': {text!r}, expected a whole number",
            "unpack the archive again",
        )
    return int(text)


def _year(text: str) -> float | None:
    return float(text) if text.isdecimal() else None


def _item_table(rows: Sequence[Mapping[str, object]], genres: tuple[str, ...]) -> pl.LazyFrame:
    flags = dict.fromkeys(map(_flag, genres), pl.String)
    return pl.DataFrame(rows, schema={"item_id": pl.Int64, "year": pl.Float64, **flags}).lazy()
