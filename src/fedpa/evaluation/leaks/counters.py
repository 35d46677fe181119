"""Counts and codes of a row that know labels which they must not know."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from fedpa.data.dataset import Dataset
from fedpa.data.split import PARTS, Part, tie_starts
from fedpa.data.statistics import COUNTS, causal_counts, counts_at
from fedpa.evaluation.leaks.chance import normal_tails
from fedpa.evaluation.leaks.leak import ALPHA, Leak

__all__ = ["follows_labels", "future_counts", "own_labels", "running_counts"]

_JUDGED = (Part.VAL, Part.TEST, Part.COLD_TEST)
_KNOWN = frozenset({"user", "item", "time", *COUNTS})

SMALLEST = 0.05
"""A code must follow the labels at least this strongly to be called a leak."""


def future_counts(dataset: Dataset) -> list[Leak]:
    """Count again from rows strictly before each row, and compare with the stored counts exactly."""
    again = _recounted(dataset)
    leaks = []
    for name, counts in again.items():
        stored = getattr(dataset, name)
        wrong = np.flatnonzero(stored != counts)
        if len(wrong):
            row = int(wrong[0])
            leaks.append(
                Leak(
                    level="leak",
                    kind="counts",
                    where=f"interactions.parquet, {name}",
                    found=f"{len(wrong):,} of {dataset.n_rows:,} rows differ from a recount of strictly earlier rows; "
                    f"row {row} says {stored[row]:,}",
                    expected=f"{counts[row]:,} in row {row}",
                    evidence=len(wrong) / dataset.n_rows,
                    p_value=0.0,
                )
            )
    return leaks


def running_counts(dataset: Dataset) -> list[Leak]:
    """Find a user's counters that change between rows on which the user is judged."""
    leaks = []
    for name in ("user_views", "user_clicks"):
        counts = getattr(dataset, name)
        for part in _JUDGED:
            rows = dataset.rows(part)
            users, values = dataset.user[rows], counts[rows]
            moved = (users[1:] == users[:-1]) & (values[1:] != values[:-1])
            if moved.any():
                place = int(np.flatnonzero(moved)[0])
                n_users = len(np.unique(users[1:][moved]))
                leaks.append(
                    Leak(
                        level="leak",
                        kind="running-counts",
                        where=f"interactions.parquet, {name} of {PARTS[part]} rows",
                        found=f"it changes inside the rows of {n_users:,} users; for user "
                        f"{dataset.user_ids[int(users[place])]!r} from {values[place]:,} to {values[place + 1]:,}",
                        expected="one value in all of a user's rows of the part, frozen at the cut",
                        evidence=n_users / max(1, len(np.unique(users))),
                        p_value=0.0,
                    )
                )
    return leaks


def own_labels(dataset: Dataset) -> list[Leak]:
    """Find codes of a test row that rise after the user's previous test row was clicked.

    Looks at the context codes, row features included, and at every numeric column of the interactions that is not one
    of the package's.
    """
    rows = dataset.rows(Part.TEST)
    columns: dict[str, NDArray[Any]] = {
        f"context code {feature.name}": dataset.context_codes[rows, place]
        for place, feature in enumerate(dataset.context_features)
    }
    known = _KNOWN.union(dataset.label_names, (feature.name for feature in dataset.row_features))
    file = dataset.path / "interactions.parquet"
    for name, dtype in pl.read_parquet_schema(file).items():
        if name not in known and dtype.is_numeric():
            values = pl.read_parquet(file, columns=[name]).get_column(name).cast(pl.Float64).fill_null(0.0)
            columns[f"interactions.parquet, {name}"] = values.fill_nan(0.0).to_numpy()[rows]
    leaks = []
    for where, codes in columns.items():
        correlation, chance = follows_labels(dataset.user[rows], dataset.time[rows], dataset.label[rows], codes)
        chance = min(1.0, chance * len(columns))
        if correlation > SMALLEST and chance < ALPHA:
            leaks.append(
                Leak(
                    level="leak",
                    kind="own-labels",
                    where=f"{where} of test rows",
                    found=f"within a user its steps correlate by {correlation:.3f} with the label of the row before",
                    expected=f"no more than {SMALLEST}: a test row knows no label of another test row",
                    evidence=correlation,
                    p_value=chance,
                )
            )
    return leaks


def follows_labels(
    user: NDArray[Any], time: NDArray[Any], label: NDArray[Any], codes: NDArray[Any]
) -> tuple[float, float]:
    """Correlate a code's steps with the label of the user's row before, within users.

    A counter that runs on steps up after a click. A code of the item alone does not: a clicked row's item is
    above average, so the next one's steps down if anything. Hence the test is one-sided. A code that counts downwards
    has to be negated. Under the null hypothesis a user's labels may be permuted, which gives the variance exactly.

    Parameters
    ----------
    user, time, label, codes : ndarray, shape ``[n]``
        Rows sorted by user, then time. Steps between rows of one time are left out.

    Returns
    -------
    correlation : float
        0 where nothing can be compared.
    p_value : float
        Of so large a correlation; normal approximation of the permutation distribution.
    """
    pairs = np.flatnonzero((user[1:] == user[:-1]) & (time[1:] > time[:-1]))
    if not len(pairs):
        return 0.0, 1.0
    steps = np.asarray(codes, np.float64)[pairs + 1] - np.asarray(codes, np.float64)[pairs]
    clicks = np.asarray(label, np.float64)[pairs]
    starts = tie_starts(user[pairs])
    place = np.unique(starts, return_inverse=True)[1]
    size = np.bincount(place)
    steps = steps - (np.bincount(place, steps) / size)[place]
    clicks = clicks - (np.bincount(place, clicks) / size)[place]
    product = float(steps @ clicks)
    squares = np.bincount(place, steps**2), np.bincount(place, clicks**2)
    variance = float((squares[0] * squares[1] / np.maximum(size - 1, 1)).sum())
    if variance <= 0:
        return 0.0, 1.0
    correlation = product / math.sqrt(float(squares[0].sum()) * float(squares[1].sum()))
    chance = normal_tails(product / math.sqrt(variance)) / 2
    return correlation, chance if product > 0 else 1 - chance


def _recounted(dataset: Dataset) -> dict[str, NDArray[np.uint32]]:
    """Counts of strictly earlier rows; where rows were drawn, of the rows that were shown."""
    if "counted.parquet" not in dataset.manifest["files"]:
        return causal_counts(dataset.user, dataset.item, dataset.time, dataset.label, dataset.part)
    cuts = dataset.manifest["settings"]["cuts"]
    limits = None if cuts is None else (int(cuts[0]), int(cuts[1]))
    return counts_at(dataset.counted, dataset.user, dataset.item, dataset.time, dataset.part, limits)
