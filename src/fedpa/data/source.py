"""What every loader returns: raw tables under common names, nothing read yet."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import polars as pl

__all__ = ["Feature", "FeatureDivision", "Reference", "Source"]


@dataclass(frozen=True)
class Feature:
    """A column of a user or item table that a model may read.

    ``categorical`` columns become codes (0 is *unknown*); ``numeric`` ones log1p quantile bins.
    """

    name: str
    kind: Literal["categorical", "numeric"] = "categorical"


@dataclass(frozen=True)
class Reference:
    """The columns that the published code reads, encoded as it encodes them.

    ``binned`` names the item columns that become log1p bins; they cover the whole period, so they leak.
    """

    user: tuple[str, ...]
    item: tuple[str, ...]
    binned: tuple[str, ...]


@dataclass(frozen=True)
class FeatureDivision:
    """Open and private users by a feature, as published: 80% of users with a value in `values`, 20% of others."""

    feature: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Source:
    """Raw tables under common names.

    Attributes
    ----------
    name : str
        For instance ``"kuairand-pure"``.
    files : tuple of Path
        Every raw file read, for the manifest's hashes.
    interactions : polars.LazyFrame
        Columns ``user_id``, ``item_id`` (Int64 or String), ``time`` (Int64, milliseconds since 1970, or any
        unit that sorts) and one column per name in `labels` (Int8, 0 or 1).
    users, items : polars.LazyFrame or None
        ``user_id`` or ``item_id``, unique, and the columns named by the features, groups and reference. ``None``:
        the ids that occur are the table.
    labels : tuple of str
        Label columns; the first one is what models predict.
    user_features, item_features : tuple of Feature
        What the ``causal`` features read. No column that was computed over the period of the log.
    row_features : tuple of str
        Columns of `interactions` and `random_exposure` that say what is known of a row before its item is shown, such
        as the surface. They are offered: a preparation reads those that it is asked to.
    groups : tuple of str
        User columns whose values make groups by default.
    reference : Reference or None
        What the ``reference`` features read, where a published encoding exists.
    division : FeatureDivision or None
        The published division of users, where one exists.
    random_exposure : polars.LazyFrame or None
        Rows of randomly exposed items, as `interactions`: an unbiased test set, never trained on.
    oracle : polars.LazyFrame or None
        ``user_id``, ``item_id``, ``time``, ``probability`` (Float64): the true click probability of every row,
        known for synthetic data only.
    undated : tuple of str
        File names of tables whose date is unknown.
    notes : tuple of str
        What a person should know, such as which logs were found.
    """

    name: str
    files: tuple[Path, ...]
    interactions: pl.LazyFrame
    users: pl.LazyFrame | None
    items: pl.LazyFrame | None
    labels: tuple[str, ...] = ("click",)
    user_features: tuple[Feature, ...] = ()
    item_features: tuple[Feature, ...] = ()
    row_features: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    reference: Reference | None = None
    division: FeatureDivision | None = None
    random_exposure: pl.LazyFrame | None = None
    oracle: pl.LazyFrame | None = None
    undated: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())
