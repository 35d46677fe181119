"""Raw tables as lazy frames that explain what is wrong with their file when they are read."""

from __future__ import annotations

import csv
import difflib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import polars as pl
from polars.io.plugins import register_io_source

from fedpa.data import fault
from fedpa.errors import DataError

__all__ = ["scan_table", "table_schema"]

DType: TypeAlias = pl.DataType | type[pl.DataType]

_LONGEST_LINE = 1 << 20
_SAMPLE = 10_000


def scan_table(
    path: Path,
    columns: Mapping[str, DType],
    *,
    separator: str = ",",
    has_header: bool = True,
    optional: Collection[str] = (),
) -> pl.LazyFrame:
    """Scan the named columns of a CSV or Parquet file with the given types.

    The header and the end of the file are checked at once. Cells are read when the frame is collected, in
    batches and only in the columns that are used; a cell of the wrong type or a byte that is not UTF-8 then
    raises a `DataError` that names its line.

    Parameters
    ----------
    path : Path
        A Parquet file if its name ends with ``.parquet``, else UTF-8 text.
    columns : mapping of str to polars data type
        The columns to read, in the order of the result. A Parquet column of another type is converted where
        no value is lost, dates and times to milliseconds since 1970.
    separator : str
        One character between the fields of a text file.
    has_header : bool
        Without a header, `columns` names every field of the file in order.
    optional : collection of str
        Columns that are left out when the file has none of that name.

    Raises
    ------
    DataError
        If the file is missing or empty, lacks a column, or ends within a row; on collecting, if a cell is
        not of its column's type, a row is too long, or a byte is not UTF-8.
    """
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "no such file"
        raise DataError(f"{path}: {found}, expected a table", "check the name of the file")
    if path.suffix == ".parquet":
        return _scan_parquet(path, columns, optional)
    first = _first_fields(path, separator)
    if not has_header:
        if len(first) != len(columns):
            raise DataError(
                f"{path}, line 1: {len(first)} fields, expected {len(columns)} ({', '.join(columns)})",
                f"separate the fields with {separator!r} and leave none out",
            )
        header, wanted = list(columns), dict(columns)
    else:
        header, wanted = first, _wanted(path, first, columns, optional)
        if not _has_rows(path):
            raise DataError(f"{path}: a header but no rows", "export the table again, with its rows")
    _check_last_line(path, separator, header, has_header)
    table = fault.TextTable(path, wanted, tuple(header), separator, has_header)
    return _lazy(_Csv(table), wanted)


def table_schema(path: Path, *, separator: str = ",") -> pl.Schema:
    """Columns of a CSV or Parquet file and their types; those of CSV are guessed from its first rows.

    Raises
    ------
    DataError
        If the file is missing, empty or unreadable.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file, expected a table", "check the name of the file and its folder")
    if path.suffix == ".parquet":
        return _parquet_schema(path)
    _first_fields(path, separator)
    try:
        return pl.scan_csv(path, separator=separator, infer_schema_length=_SAMPLE).collect_schema()
    except pl.exceptions.PolarsError as error:
        raise fault.not_utf8(path) or fault.unreadable(path, error) from error


@dataclass(frozen=True)
class _Csv:
    table: fault.TextTable

    def frame(self) -> pl.LazyFrame:
        return self.table.scan().select(*self.table.columns)

    def explain(self, error: Exception) -> DataError:
        return fault.explain_text(self.table, error)


@dataclass(frozen=True)
class _Parquet:
    path: Path
    schema: pl.Schema
    columns: Mapping[str, DType]

    def frame(self) -> pl.LazyFrame:
        converted = [fault.converted(name, self.schema[name], dtype) for name, dtype in self.columns.items()]
        return pl.scan_parquet(self.path).select(converted)

    def explain(self, error: Exception) -> DataError:
        return fault.explain_parquet(self.path, self.schema, self.columns, error)


def _lazy(table: _Csv | _Parquet, columns: Mapping[str, DType]) -> pl.LazyFrame:
    def batches(
        with_columns: list[str] | None, predicate: pl.Expr | None, n_rows: int | None, batch_size: int | None
    ) -> Iterator[pl.DataFrame]:
        frame = table.frame()
        if n_rows is not None:
            frame = frame.head(n_rows)
        if predicate is not None:
            frame = frame.filter(predicate)
        if with_columns is not None:
            frame = frame.select(with_columns)
        try:
            yield from frame.collect_batches(chunk_size=batch_size, maintain_order=True)
        except pl.exceptions.PolarsError as error:
            raise table.explain(error) from error

    return register_io_source(batches, schema=pl.Schema(columns))


def _scan_parquet(path: Path, columns: Mapping[str, DType], optional: Collection[str]) -> pl.LazyFrame:
    schema = _parquet_schema(path)
    wanted = _wanted(path, schema.names(), columns, optional)
    for name, dtype in wanted.items():
        if not fault.convertible(schema[name], dtype):
            raise DataError(
                f"{path}, column {name!r}: holds {schema[name]}, expected {fault.described(dtype)}",
                "convert the column before writing the file",
            )
    if pl.scan_parquet(path).select(pl.len()).collect().item() == 0:
        raise DataError(f"{path}: columns but no rows", "export the table again, with its rows")
    return _lazy(_Parquet(path, schema, wanted), wanted)


def _parquet_schema(path: Path) -> pl.Schema:
    try:
        return pl.scan_parquet(path).collect_schema()
    except pl.exceptions.PolarsError as error:
        raise DataError(
            f"{path}: not a complete Parquet file ({fault.first_line(error)})", "write or copy the file again"
        ) from error


def _wanted(
    path: Path, header: Iterable[str], columns: Mapping[str, DType], optional: Collection[str]
) -> dict[str, DType]:
    found = list(header)
    missing = [name for name in columns if name not in found and name not in optional]
    if missing:
        close = {name: difflib.get_close_matches(name, found, n=1) for name in missing}
        rename = [f"{match[0]!r} to {name!r}" for name, match in close.items() if match]
        if rename:
            fix = f"rename {', '.join(rename)}"
        elif len(found) == 1 and any(mark in found[0] for mark in ",;\t|"):
            fix = "check the character between the fields"
        else:
            fix = "add the missing columns to the file"
        raise DataError(f"{path}: no column {', '.join(map(repr, missing))}; its columns are {', '.join(found)}", fix)
    double = [name for name in columns if found.count(name) > 1]
    if double:
        raise DataError(f"{path}: more than one column {double[0]!r}", "rename or remove one of them")
    return {name: dtype for name, dtype in columns.items() if name in found}


def _first_fields(path: Path, separator: str) -> list[str]:
    with path.open("rb") as file:
        line = file.readline(_LONGEST_LINE)
    if not line.strip():
        found = "empty file" if not line else "the first line is empty"
        raise DataError(f"{path}: {found}", "export the table again")
    try:
        text = line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise (fault.not_utf8(path) or fault.unreadable(path, error)) from error
    return next(csv.reader([text], delimiter=separator))


def _has_rows(path: Path) -> bool:
    with path.open("rb") as file:
        file.readline(_LONGEST_LINE)
        return bool(file.read(64).strip())


def _check_last_line(path: Path, separator: str, header: list[str], has_header: bool) -> None:
    """Refuse a file whose last line lacks fields: a copy or an export was cut off."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - _LONGEST_LINE))
        tail = file.read()
    last = tail.rstrip(b"\r\n").rpartition(b"\n")[2].decode("utf-8", errors="replace")
    if last.count('"') % 2:  # the end of a quoted text of several lines: its row is not known from here
        return
    fields = len(next(csv.reader([last], delimiter=separator), []))
    if fields < len(header):
        kind = "the header has" if has_header else "expected"
        raise DataError(
            f"{path}, line {fault.count_lines(path)}: the file ends within a row: {fields} fields, "
            f"{kind} {len(header)}",
            "copy or export the file again, it was cut off",
        )
