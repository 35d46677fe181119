"""Raw interactions as row numbers: read column by column, sorted, without repeats."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from fedpa.data.encode import ROW
from fedpa.data.source import Source
from fedpa.errors import DataError

__all__ = ["Rows", "read_oracle", "read_rows", "read_table"]

_PIECE = 1 << 21


@dataclass
class Rows:
    """Interactions sorted by user, then time.

    Attributes
    ----------
    table : polars.DataFrame
        ``user`` and ``item`` (UInt32 row numbers of their tables), ``time``, the labels and the values of row
        features, whose names begin with `fedpa.data.encode.ROW`.
    random : ndarray of bool, shape ``[n]``
        Randomly exposed rows.
    """

    table: pl.DataFrame
    random: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.random)

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.table.get_column(name).to_numpy()

    def keep(self, kept: NDArray[np.bool_]) -> Rows:
        """Only the rows where `kept` is true."""
        if kept.all():
            return self
        return Rows(self.table.filter(pl.Series(kept)), self.random[kept])


def read_table(source: Source, noun: str, columns: Sequence[str]) -> pl.DataFrame:
    """The user or item table of a valid source, sorted by id; where there is none, the ids that occur.

    Parameters
    ----------
    source : Source
    noun : {"user", "item"}
    columns : sequence of str
        Columns to read besides the id.

    Raises
    ------
    DataError
        If a column is missing.
    """
    key = f"{noun}_id"
    table = source.users if noun == "user" else source.items
    if table is None:
        logs = [source.interactions, *([] if source.random_exposure is None else [source.random_exposure])]
        table = pl.concat([log.select(key) for log in logs]).unique()
    found = table.collect_schema().names()
    if missing := [name for name in columns if name not in found]:
        raise DataError(
            f"{source.name}: the {noun} table has no column {missing[0]!r}, it has {', '.join(sorted(found))}",
            f"name one of these columns, or add {missing[0]!r} to the {noun} table",
        )
    return table.select(list(dict.fromkeys([key, *columns]))).collect(engine="streaming").sort(key)


def read_rows(
    source: Source,
    labels: Sequence[str],
    user_ids: pl.Series,
    item_ids: pl.Series,
    row_features: Sequence[str] = (),
) -> tuple[Rows, dict[str, int]]:
    """All interactions of a valid source, those at random exposure included, each once.

    A row that repeats another in user, item, time and every label is dropped: of rows that differ in row features alone
    the one of the smallest values stays. The order of the raw rows does not matter.

    Parameters
    ----------
    source : Source
    labels : sequence of str
    user_ids, item_ids : polars.Series
        Ids of the tables; the position of an id is its number.
    row_features : sequence of str
        Of the source's, those to read.

    Returns
    -------
    rows : Rows
    dropped : dict of str to int
        How many rows are missing, ``repeats`` and ``random_repeats``.
    """
    logs = [source.interactions, *([] if source.random_exposure is None else [source.random_exposure])]
    columns = [pl.col("user"), pl.col("item"), pl.col("time").cast(pl.Int64), pl.col(labels).cast(pl.Int8)]
    columns += [pl.col(name).alias(f"{ROW}{name}") for name in row_features]
    own = [f"{ROW}{name}" for name in row_features]
    table = pl.concat(
        [
            _numbered(log, user_ids, item_ids, [*columns, pl.lit(value).alias("random")])
            for value, log in zip((False, True), logs, strict=False)
        ],
        rechunk=True,
    )
    order = ["user", "time", "random", "item", *labels]
    table = table.sort([*order, *own])
    repeated = np.zeros(len(table), dtype=np.bool_)
    repeated[1:] = True
    for name in order:
        values = table.get_column(name).to_numpy()
        repeated[1:] &= values[1:] == values[:-1]
    random = table.get_column("random").to_numpy()
    rows = Rows(table.select("user", "item", "time", *labels, *own), random).keep(~repeated)
    return rows, {
        "repeats": int((repeated & ~random).sum()),
        "random_repeats": int((repeated & random).sum()),
    }


def read_oracle(source: Source, rows: Rows, user_ids: pl.Series, item_ids: pl.Series) -> pl.DataFrame:
    """The true click ``probability`` of every row, in the same order.

    Raises
    ------
    DataError
        If the oracle does not know a row.
    """
    if source.oracle is None:
        raise DataError(f"{source.name}: has no oracle")
    keys = ["user", "item", "time"]
    truth = _numbered(source.oracle, user_ids, item_ids, [*keys, "probability"])
    truth = truth.sort("user")
    known = pl.concat(
        rows.table[mine].join(
            truth[theirs].group_by(keys).agg(pl.col("probability").max()),
            on=keys,
            how="left",
            maintain_order="left",
        )["probability"]
        for mine, theirs in _slices(rows["user"], truth["user"].to_numpy())
    )
    probability = known.cast(pl.Float64)
    if probability.null_count():
        row = rows.table.filter(probability.is_null()).row(0, named=True)
        user, item = user_ids[row["user"]], item_ids[row["item"]]
        raise DataError(
            f"{source.name}: the oracle lacks {probability.null_count()} rows, the first is user {user!r}, "
            f"item {item!r}, time {row['time']}"
        )
    return probability.to_frame()


def _slices(first: NDArray[Any], second: NDArray[Any]) -> Iterator[tuple[slice, slice]]:
    """Rows of the same users in two ascending columns of users, about `_PIECE` of the first at a time."""
    start = (0, 0)
    for place in range(_PIECE, len(first) + _PIECE, _PIECE):
        last = first[min(place, len(first)) - 1]
        end = int(np.searchsorted(first, last, "right")), int(np.searchsorted(second, last, "right"))
        if end[0] > start[0]:
            yield slice(start[0], end[0]), slice(start[1], end[1])
        start = end


def _numbered(
    log: pl.LazyFrame, user_ids: pl.Series, item_ids: pl.Series, columns: Sequence[str | pl.Expr]
) -> pl.DataFrame:
    """Columns of a log that has ``user`` and ``item`` numbers beside the ids."""
    for ids, number in ((user_ids, "user"), (item_ids, "item")):
        numbered = ids.to_frame().lazy().with_columns(pl.int_range(pl.len(), dtype=pl.UInt32).alias(number))
        log = log.join(numbered, on=ids.name)
    return log.select(columns).collect(engine="streaming")
