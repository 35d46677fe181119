"""Checks of raw tables as a whole, in a few passes that never hold a log in memory."""

from __future__ import annotations

from typing import Any

import polars as pl

from fedpa.data.source import Source
from fedpa.errors import DataError

__all__ = ["validate"]

_SHOWN = 5
_LOOSE = 1 << 22


def validate(source: Source) -> None:
    """Refuse a source whose rows contradict each other or the contract of `Source`.

    Tables are checked before logs: columns that features, groups, division and reference name; missing and
    repeated ids. Then every log: no rows; rows without user, item or time; labels other than 0 and 1; ids
    that are in no table.

    Raises
    ------
    DataError
        At the first fault, with the rows or ids it was found in and how many there are. Also, while reading,
        if a cell is not of its column's type.
    """
    _check_columns(source)
    for name, table, key in (("users", source.users, "user_id"), ("items", source.items, "item_id")):
        if table is not None:
            _check_ids(f"{source.name} {name}", table, key)
    _check_log(source, "interactions", source.interactions)
    if source.random_exposure is not None:
        _check_log(source, "random_exposure", source.random_exposure)


def _check_columns(source: Source) -> None:
    reference, division = source.reference, source.division
    wanted = {
        "users": (
            *source.groups,
            *(feature.name for feature in source.user_features),
            *(reference.user if reference else ()),
            *((division.feature,) if division else ()),
        ),
        "items": (*(feature.name for feature in source.item_features), *(reference.item if reference else ())),
    }
    for table, frame in (("users", source.users), ("items", source.items)):
        found = [] if frame is None else frame.collect_schema().names()
        for name in wanted[table]:
            if name not in found:
                use = "to group users by " if table == "users" and name in source.groups else ""
                raise DataError(
                    f"{source.name} {table}: no column {name!r} {use}".rstrip()
                    + f"; the columns are {', '.join(found) or 'none, as there is no such table'}",
                    "add the column to the table or do not name it",
                )


def _check_ids(what: str, table: pl.LazyFrame, key: str) -> None:
    rows, distinct, missing = (
        table.select(
            pl.len().alias("rows"),
            pl.col(key).drop_nulls().n_unique().alias("distinct"),
            pl.col(key).null_count().alias("missing"),
        )
        .collect(engine="streaming")
        .row(0)
    )
    if rows == 0:
        raise DataError(f"{what}: no rows", "export the table again, with its rows")
    if missing:
        raise DataError(f"{what}: {missing} of {rows} rows have no {key}", "give every row an id")
    if distinct == rows:
        return
    repeated = (
        table.group_by(key)
        .agg(pl.len().alias("times"))
        .filter(pl.col("times") > 1)
        .sort(key)
        .collect(engine="streaming")
    )
    first = ", ".join(f"{value!r} {times} times" for value, times in repeated.head(_SHOWN).iter_rows())
    raise DataError(
        f"{what}: {repeated.height} values of {key} occur more than once: {first}{_more(repeated.height)}",
        "keep one row per id",
    )


def _check_log(source: Source, name: str, log: pl.LazyFrame) -> None:
    what = f"{source.name} {name}"
    schema = log.collect_schema()
    columns = ["user_id", "item_id", "time", *source.labels]
    absent = [column for column in (*columns, *source.row_features) if column not in schema]
    if absent:
        raise DataError(
            f"{what}: no column {absent[0]!r}; the columns are {', '.join(schema.names())}",
            "add the column to the log",
        )
    if not schema["time"].is_numeric():
        raise DataError(
            f"{what}: column 'time' holds {schema['time']}, expected whole numbers", "convert it to milliseconds"
        )
    tables = {key: table for key, table in (("user_id", source.users), ("item_id", source.items)) if table is not None}
    for key, table in tables.items():
        have, listed = schema[key], table.collect_schema()[key]
        if have != listed:
            raise DataError(
                f"{what}: {key} holds {have}, but {listed} in the table of {key[:-3]}s", "use one type for both"
            )
    faults = {column: _is_fault(column, schema[column]) for column in columns}
    rows, counts, first = 0, dict.fromkeys(columns, 0), dict[str, dict[str, Any]]()
    ids = {key: _Distinct() for key in tables}
    for batch in log.select(columns).collect_batches():
        rows += batch.height
        for column, count in batch.select(fault.sum() for fault in faults.values()).row(0, named=True).items():
            if count:
                counts[column] += count
                first.setdefault(column, batch.filter(faults[column]).row(0, named=True))
        for key, distinct in ids.items():
            distinct.add(batch.get_column(key))
    if rows == 0:
        raise DataError(f"{what}: no rows", "export the log again, with its rows")
    for column in columns:
        if counts[column]:
            raise _fault(what, column, first[column], counts[column])
    for key, table in tables.items():
        _check_known(what, key, ids[key].values(), table)


class _Distinct:
    """Distinct values of a column that comes in batches, in memory proportional to their number."""

    def __init__(self) -> None:
        self._batches: list[pl.Series] = []
        self._loose = 0

    def add(self, batch: pl.Series) -> None:
        self._batches.append(batch.unique())
        self._loose += len(self._batches[-1])
        if self._loose > _LOOSE:
            self._batches, self._loose = [self.values()], 0

    def values(self) -> pl.Series:
        return pl.concat(self._batches).unique()


def _check_known(what: str, key: str, values: pl.Series, table: pl.LazyFrame) -> None:
    listed = table.select(key).collect(engine="streaming")
    unknown = values.to_frame().join(listed, on=key, how="anti").get_column(key).sort()
    if len(unknown):
        noun = key.removesuffix("_id")
        shown = ", ".join(repr(value) for value in unknown.head(_SHOWN))
        raise DataError(
            f"{what}: {len(unknown)} values of {key} are not in the table of {noun}s: {shown}{_more(len(unknown))}",
            f"add them to the table of {noun}s or remove their rows",
        )


def _is_fault(column: str, dtype: pl.DataType) -> pl.Expr:
    value = pl.col(column)
    if column in ("user_id", "item_id"):
        return value.is_null()
    if column == "time":
        return value.is_null() | ~value.is_finite() if dtype.is_float() else value.is_null()
    number = value.cast(pl.Float64, strict=False)
    return ~number.is_in([0.0, 1.0]).fill_null(False)


def _fault(what: str, column: str, row: dict[str, Any], count: int) -> DataError:
    where = f"user {row['user_id']!r}, item {row['item_id']!r}, time {row['time']!r}"
    others = f" (and {count - 1} more such rows)" if count > 1 else ""
    if column in ("user_id", "item_id"):
        return DataError(f"{what}: a row has no {column}: {where}{others}", "remove the row or complete it")
    if column == "time":
        return DataError(
            f"{what}: a row has no time that is a number: {where}{others}", "remove the row or complete it"
        )
    value = row[column]
    shown = "no value" if value is None else repr(value)
    return DataError(f"{what}, label {column!r}: {shown} at {where}, expected 0 or 1{others}", "correct the label")


def _more(count: int) -> str:
    return f" and {count - _SHOWN} more" if count > _SHOWN else ""
