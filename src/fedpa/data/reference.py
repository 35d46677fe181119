"""The feature encoding of the published code, exactly, so that its figures can be reproduced."""

from __future__ import annotations

import numpy as np
import polars as pl

from fedpa.errors import DataError

__all__ = ["MISSING", "reference_codes"]

MISSING = -100
"""What a missing category counts as: a number in a numeric column, text in a text column."""

_EDGES = 99


def reference_codes(column: pl.Series, binned: bool) -> tuple[pl.Series, list[str] | list[float]]:
    """Encode a column of a whole feature table as the published code does.

    A category's code is its position among the distinct values of the table in ascending order: numeric
    order in a numeric column, the order of code points in a text column (so ``"12"`` comes before ``"2"``
    and a missing tag, ``"-100"``, before both). A column of several values, such as the tag ``"12,65"``,
    is one text. A binned value is ``log1p``-transformed and compared with 99 equally spaced edges from the
    1st to the 99th percentile (linear interpolation) over all rows of the table, one row per id: its code
    is the number of edges strictly below it, 0 to 99, so intervals are closed on the right.

    The published tables miss no value in a binned column; here a missing one has code 0.

    Parameters
    ----------
    column : polars.Series
        All rows of the table, in any order; shape ``[rows]``.
    binned : bool
        Whether the column is cut into bins of its logarithm.

    Returns
    -------
    codes : polars.Series
        Int32, shape ``[rows]``, named as `column`.
    known : list of str or list of float
        The values in the order of their codes, as text; or the 99 edges, on the ``log1p`` scale.

    Raises
    ------
    DataError
        If a column to bin holds text, a value of -1 or less, or no value at all.
    """
    return _bins(column) if binned else _categories(column)


def _categories(column: pl.Series) -> tuple[pl.Series, list[str]]:
    if column.dtype == pl.Null:
        column = column.cast(pl.Int64)
    missing = MISSING if column.dtype.is_numeric() else str(MISSING)
    if not column.dtype.is_numeric():
        column = column.cast(pl.String)
    filled = column.fill_null(missing)
    known = filled.unique().sort()
    codes = known.search_sorted(filled, side="left").cast(pl.Int32)
    return codes.alias(column.name), known.cast(pl.String).to_list()


def _bins(column: pl.Series) -> tuple[pl.Series, list[float]]:
    present = column.drop_nulls()
    if not column.dtype.is_numeric() or present.is_empty() or (present <= -1).any():
        raise DataError(
            f"column {column.name!r}: cannot be cut into bins of its logarithm, which need numbers above -1",
            "use the causal features, or correct the column",
        )
    low, high = np.percentile(np.log1p(present.to_numpy().astype(np.float64)), [1, 99])
    edges = np.linspace(low, high, _EDGES)
    numbers = np.log1p(column.cast(pl.Float64).fill_null(0.0).to_numpy())
    codes = np.searchsorted(edges, numbers, side="left").astype(np.int32)
    codes[column.is_null().to_numpy()] = 0
    return pl.Series(column.name, codes, dtype=pl.Int32), [float(edge) for edge in edges]
