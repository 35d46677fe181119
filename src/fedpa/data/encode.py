"""Codes for features: a vocabulary or quantile bins, fitted once, applied anywhere, kept as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import polars as pl
from numpy.typing import NDArray

from fedpa.data.reference import reference_codes
from fedpa.data.source import Feature
from fedpa.data.statistics import ITEM_STRENGTH, USER_STRENGTH, smoothed_rate
from fedpa.errors import ArtifactError

__all__ = [
    "BINS",
    "MAX_VALUES",
    "ROW",
    "Categorical",
    "Encoder",
    "Numeric",
    "encode_reference",
    "fit",
    "fit_context",
    "fit_rows",
    "from_json",
]

MAX_VALUES = 1000
"""A categorical feature keeps this many of its values, the most frequent ones; the others are unknown."""

ROW = "row:"
"""What the names of row features begin with, among the context features and in ``interactions.parquet``."""

BINS = 32
"""A numeric feature has at most this many quantile bins."""


@dataclass(frozen=True)
class Categorical:
    """A vocabulary: the value at position ``i`` has code ``i + offset``, every other value has code 0.

    Attributes
    ----------
    name : str
    vocabulary : tuple of str
        The known values, as text.
    offset : {0, 1}
        1 keeps code 0 for *unknown*. 0 is for encodings that know all values beforehand.
    """

    name: str
    vocabulary: tuple[str, ...]
    offset: int = 1

    @property
    def size(self) -> int:
        """Number of codes, the unknown one included."""
        return max(1, len(self.vocabulary) + self.offset)

    @classmethod
    def fit(cls, name: str, values: pl.Series, max_values: int | None = MAX_VALUES) -> Categorical:
        """Learn the vocabulary of a column: its most frequent values, in their natural order.

        Missing values are unknown. Ties in frequency go to the smaller value, so the vocabulary depends
        on the values alone, not on their order.
        """
        column = values.drop_nulls().rename("value").to_frame()
        counts = column.group_by("value").agg(pl.len().alias("count"))
        counts = counts.sort(["count", "value"], descending=[True, False])
        kept = (counts if max_values is None else counts.head(max_values)).get_column("value").sort()
        return cls(name, tuple(kept.cast(pl.String).to_list()))

    def encode(self, values: pl.Series) -> NDArray[np.int32]:
        """Codes of a column, shape ``[len(values)]``."""
        if not self.vocabulary:
            return np.zeros(len(values), dtype=np.int32)
        table = pl.DataFrame(
            {
                "value": pl.Series(self.vocabulary, dtype=pl.String),
                "code": np.arange(self.offset, self.offset + len(self.vocabulary), dtype=np.int32),
            }
        )
        text = values.cast(pl.String).rename("value").to_frame()
        codes = text.join(table, on="value", how="left", maintain_order="left").get_column("code")
        return codes.fill_null(0).to_numpy()

    def to_json(self) -> dict[str, Any]:
        """Everything that `from_json` needs."""
        return {
            "name": self.name,
            "kind": "categorical",
            "size": self.size,
            "vocabulary": list(self.vocabulary),
            "offset": self.offset,
        }


@dataclass(frozen=True)
class Numeric:
    """Bins between edges: code 0 is *missing*, code ``1 + k`` holds values with ``k`` edges at or below them.

    Attributes
    ----------
    name : str
    edges : tuple of float
        Strictly ascending, on the transformed scale.
    transform : {"log1p", "none"}
        ``log1p`` is ``sign(x) log(1 + |x|)``.
    """

    name: str
    edges: tuple[float, ...]
    transform: Literal["log1p", "none"] = "log1p"

    @property
    def size(self) -> int:
        """Number of codes, the missing one included."""
        return len(self.edges) + 2

    @classmethod
    def fit(
        cls,
        name: str,
        values: pl.Series | NDArray[Any],
        transform: Literal["log1p", "none"] = "log1p",
        bins: int = BINS,
    ) -> Numeric:
        """Learn the edges: the quantiles of the finite values that cut them into `bins` equal parts."""
        numbers = _transform(values, transform)
        numbers = numbers[np.isfinite(numbers)]
        if not len(numbers):
            return cls(name, (), transform)
        cuts = np.quantile(numbers, np.arange(1, bins) / bins, method="inverted_cdf")
        edges = np.unique(cuts)
        return cls(name, tuple(float(edge) for edge in edges[edges > numbers.min()]), transform)

    def encode(self, values: pl.Series | NDArray[Any]) -> NDArray[np.int32]:
        """Codes of a column, shape of `values`."""
        numbers = _transform(values, self.transform)
        codes = np.searchsorted(np.asarray(self.edges, dtype=np.float64), numbers, side="right") + 1
        codes[~np.isfinite(numbers)] = 0
        return codes.astype(np.int32)

    def to_json(self) -> dict[str, Any]:
        """Everything that `from_json` needs."""
        return {
            "name": self.name,
            "kind": "numeric",
            "size": self.size,
            "edges": list(self.edges),
            "transform": self.transform,
        }


Encoder: TypeAlias = Categorical | Numeric


def from_json(content: Mapping[str, Any]) -> Encoder:
    """The encoder that `to_json` described.

    Raises
    ------
    ArtifactError
        If the content describes no encoder.
    """
    try:
        if content["kind"] == "categorical":
            return Categorical(content["name"], tuple(content["vocabulary"]), content["offset"])
        if content["kind"] == "numeric":
            return Numeric(content["name"], tuple(content["edges"]), content["transform"])
    except KeyError as error:
        raise ArtifactError(f"an encoder in the manifest lacks {error}") from error
    raise ArtifactError(f"an encoder in the manifest is of kind {content['kind']!r}, unknown here")


def fit(feature: Feature, values: pl.Series) -> Encoder:
    """The encoder of a feature, fitted on some of its values.

    A feature that is the id itself keeps all its values, however many there are.
    """
    if feature.kind == "numeric":
        return Numeric.fit(feature.name, values)
    is_id = feature.name in {"user_id", "item_id"}
    return Categorical.fit(feature.name, values, None if is_id else MAX_VALUES)


def fit_context(counts: Mapping[str, NDArray[np.uint32]], rows: NDArray[np.bool_]) -> tuple[Numeric, ...]:
    """Encoders of ``item_rate``, ``item_views``, ``user_rate`` and ``user_views``.

    Parameters
    ----------
    counts : mapping of str to ndarray, shape ``[n]``
        As `fedpa.data.statistics.causal_counts` gives them.
    rows : ndarray of bool, shape ``[n]``
        Rows to fit on: those that the foundation learns from.
    """
    opened = counts["open_clicks"][rows], counts["open_views"][rows]
    encoders: list[Numeric] = []
    for noun, strength in (("item", ITEM_STRENGTH), ("user", USER_STRENGTH)):
        views, clicks = counts[f"{noun}_views"][rows], counts[f"{noun}_clicks"][rows]
        rate = smoothed_rate(clicks, views, *opened, strength)
        encoders += [Numeric.fit(f"{noun}_rate", rate, "none"), Numeric.fit(f"{noun}_views", views)]
    return tuple(encoders)


def fit_rows(values: pl.DataFrame, rows: NDArray[np.bool_]) -> tuple[Categorical, ...]:
    """Encoders of row features, one per column of `values`, fitted on the rows that the foundation learns from."""
    return tuple(Categorical.fit(column.name, column.filter(pl.Series(rows))) for column in values)


def encode_reference(values: pl.Series, *, binned: bool) -> tuple[NDArray[np.int32], dict[str, Any]]:
    """Codes as the published code makes them from a whole column, and what the manifest says of them."""
    column, known = reference_codes(values, binned)
    codes = column.to_numpy().astype(np.int32)
    size = len(known) + 1 if binned else len(known)
    kind = "edges" if binned else "vocabulary"
    facts = {"name": values.name, "kind": "reference", "size": size, kind: list(known)}
    return codes, facts


def _transform(values: pl.Series | NDArray[Any], transform: str) -> NDArray[np.float64]:
    if isinstance(values, pl.Series):
        numbers = values.cast(pl.Float64, strict=False).fill_null(float("nan")).to_numpy()
    else:
        numbers = np.asarray(values, dtype=np.float64)
    if transform == "none":
        return numbers
    signed: NDArray[np.float64] = np.copysign(np.log1p(np.abs(numbers)), numbers)
    return signed
