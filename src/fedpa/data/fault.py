"""Finds the cell, line or byte that made a table unreadable, by reading the file again in pieces."""

from __future__ import annotations

import codecs
import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import polars as pl

from fedpa.errors import DataError

__all__ = [
    "TextTable",
    "converted",
    "convertible",
    "count_lines",
    "described",
    "explain_parquet",
    "explain_text",
    "first_line",
    "not_utf8",
    "unreadable",
]

_PIECE = 1 << 20
_ROW = "__row__"

DType = pl.DataType | type[pl.DataType]


@dataclass(frozen=True)
class TextTable:
    """How a text file is to be read: `columns` are the typed ones, `header` all of its fields."""

    path: Path
    columns: Mapping[str, DType]
    header: tuple[str, ...]
    separator: str
    has_header: bool

    def scan(self, *, typed: bool = True) -> pl.LazyFrame:
        """All columns of the file; as text and with surplus fields dropped where not `typed`."""
        return pl.scan_csv(
            self.path,
            separator=self.separator,
            has_header=self.has_header,
            new_columns=None if self.has_header else list(self.header),
            schema_overrides=dict(self.columns) if typed and self.has_header else None,
            schema=dict(self.columns) if typed and not self.has_header else None,
            infer_schema=False,
            truncate_ragged_lines=not typed,
            row_index_name=None if typed else _ROW,
        )


def explain_text(table: TextTable, error: Exception) -> DataError:
    """Why a text file could not be read, with the line where that is known."""
    return not_utf8(table.path) or _bad_cell(table) or _ragged(table) or unreadable(table.path, error)


def explain_parquet(
    path: Path, schema: Mapping[str, DType], columns: Mapping[str, DType], error: Exception
) -> DataError:
    """Why a Parquet file could not be read, with the row where that is known."""
    bad = {name: _is_bad(name, schema[name], dtype) for name, dtype in columns.items()}
    found = _first_bad(pl.scan_parquet(path, row_index_name=_ROW), bad)
    if found is None:
        return unreadable(path, error)
    row, name, value = found
    return _wrong_type(f"{path}, row {row + 1}", name, value, columns[name])


def not_utf8(path: Path) -> DataError | None:
    """The first byte of a file that is not UTF-8, if there is one."""
    line, offset, rest = 1, 0, b""
    with path.open("rb") as file:
        while True:
            piece = file.read(_PIECE)
            data = rest + piece
            try:
                _, used = codecs.utf_8_decode(data, "strict", not piece)
            except UnicodeDecodeError as error:
                line += data.count(b"\n", 0, error.start)
                return DataError(
                    f"{path}, line {line}: byte {offset + error.start} of the file is "
                    f"0x{data[error.start]:02x}, which is not UTF-8",
                    "save the file as UTF-8",
                )
            if not piece:
                return None
            line += data.count(b"\n", 0, used)
            offset, rest = offset + used, data[used:]


def count_lines(path: Path) -> int:
    """Number of lines of a file, the last one included that holds more than its end."""
    lines, last = 0, b"\n"
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            lines, last = lines + piece.count(b"\n"), piece[-1:]
    return lines + (last != b"\n")


def unreadable(path: Path, error: Exception) -> DataError:
    """An error of the reader itself, named by its file."""
    return DataError(f"{path}: not readable as a table ({first_line(error)})", "export the table again")


def first_line(error: Exception) -> str:
    """The first line of an error's message."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def described(dtype: DType) -> str:
    """A type in words."""
    if dtype == pl.Int8:
        return "a whole number from -128 to 127"
    if dtype.is_integer():
        return "a whole number"
    return "a number" if dtype.is_float() else "text"


def convertible(have: DType, want: DType) -> bool:
    """Whether `converted` knows how to turn a column of one type into another."""
    if want == pl.String:
        return not have.is_nested() and have != pl.Binary
    return have.is_numeric() or have in (pl.Boolean, pl.String, pl.Null) or have in (pl.Date, pl.Datetime)


def converted(name: str, have: DType, want: DType, *, strict: bool = True) -> pl.Expr:
    """A column in another type; a value that does not fit fails, or is null where not `strict`."""
    column = pl.col(name)
    if have == want:
        return column
    if have in (pl.Date, pl.Datetime) and want != pl.String:
        return column.dt.epoch("ms").cast(want, strict=strict)
    if have.is_float() and want.is_integer():  # a cast alone would cut off the fraction
        column = pl.when(column == column.floor()).then(column).otherwise(column * float("nan"))
    return column.cast(want, strict=strict).alias(name)


def _is_bad(name: str, have: DType, want: DType) -> pl.Expr:
    lost = converted(name, have, want, strict=False).is_null()
    return (pl.col(name).is_not_null() & lost).alias(f"bad {name}")


def _first_bad(frame: pl.LazyFrame, bad: Mapping[str, pl.Expr]) -> tuple[int, str, object] | None:
    """Row number from 0, column and value of the first cell that does not fit."""
    if not bad:
        return None
    rows = frame.filter(pl.any_horizontal(bad.values())).head(1)
    try:
        found = rows.select(_ROW, *bad, *bad.values()).collect(engine="streaming")
    except pl.exceptions.PolarsError:
        return None
    for row in found.iter_rows(named=True):
        name = next(name for name in bad if row[f"bad {name}"])
        return row[_ROW], name, row[name]
    return None


def _bad_cell(table: TextTable) -> DataError | None:
    typed = {name: dtype for name, dtype in table.columns.items() if dtype != pl.String}
    bad = {name: _is_bad(name, pl.String, dtype) for name, dtype in typed.items()}
    found = _first_bad(table.scan(typed=False), bad)
    if found is None:
        return None
    row, name, value = found
    line = next(islice(_records(table), row + table.has_header, None), None)
    where = f"{table.path}, row {row + 1}" if line is None else f"{table.path}, line {line[0]}"
    return _wrong_type(where, name, value, typed[name])


def _wrong_type(where: str, name: str, value: object, dtype: DType) -> DataError:
    return DataError(
        f"{where}, column {name!r}: {value!r}, expected {described(dtype)}",
        "correct the value, or leave the cell empty if it is unknown",
    )


def _ragged(table: TextTable) -> DataError | None:
    last = 0
    try:
        for line, end, fields in _records(table, strict=True):
            if fields > len(table.header):
                return DataError(
                    f"{table.path}, line {line}: {fields} fields, expected {len(table.header)}",
                    f"put text that holds {table.separator!r} in double quotes",
                )
            last = end
    except csv.Error as error:
        return DataError(
            f"{table.path}, line {last + 1}: a double quote opens and is not closed ({error})",
            "close the quote, and write a quote within quoted text twice",
        )
    return None


def _records(table: TextTable, *, strict: bool = False) -> Iterator[tuple[int, int, int]]:
    """First line, last line and number of fields of every row, the header included."""
    with table.path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        reader = csv.reader(file, delimiter=table.separator, strict=strict)
        end = 0
        for record in reader:
            yield end + 1, reader.line_num, len(record)
            end = reader.line_num
