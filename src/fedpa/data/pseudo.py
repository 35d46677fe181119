"""Open users who play private ones, so that settings can be tuned without a look at any private user."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import polars as pl

from fedpa.artifacts import publish
from fedpa.data.dataset import Dataset
from fedpa.data.derive import need_parts, refuse_drawn, row_columns, row_facts, write_derived_manifest, write_rows
from fedpa.data.divide import OPEN, PRIVATE, SIDES, draw
from fedpa.data.encode import fit_context
from fedpa.data.split import FOUNDATION_VAL_SHARE, Part, cuts_in_time, split
from fedpa.data.statistics import COUNTS, causal_counts
from fedpa.errors import ConfigError, DataError

__all__ = ["pseudo_private"]


def pseudo_private(
    dataset: Dataset, out: Path | str, *, share: float = 0.5, seed: int = 0, overwrite: bool = False
) -> Dataset:
    """Write a data set of the open users alone, a drawn share of whom are private in it.

    Only rows of the parts ``foundation`` and ``foundation_val`` are read. The pseudo-private users' rows are split by
    the same rule as the private users' of `dataset`; the others are open, a tenth of them held out. Counts are
    taken anew, over pseudo-open rows, and the encoders of counts are fitted anew. The codes and encoders of users,
    items and row features stay as they are. Equal arguments give equal bytes, and so do data sets that differ in the
    labels of private users only: neither their rows and counts nor a hash that hangs on them is in the folder. With
    `global-time` splits the open rows end at the first cut of `dataset`, an instant that hangs on everybody's times.

    Parameters
    ----------
    dataset : Dataset
        As prepared.
    out : Path
        Folder to write; it appears when it is complete.
    share : float
        Of the open users, above 0 and below 1: those who play private users.
    seed : int
        Every draw is a hash of the seed, its purpose and a user's id.
    overwrite : bool
        Replace `out` if it exists.

    Returns
    -------
    Dataset

    Raises
    ------
    ConfigError
        If `share` or `seed` is out of range, or the negatives of `dataset` were drawn.
    DataError
        If there are too few open users to divide.
    ArtifactError
        If `out` exists or cannot be written.
    """
    if not 0.0 < share < 1.0:
        raise ConfigError(f"share: found {share}, expected a share above 0 and below 1")
    if seed < 0:
        raise ConfigError(f"seed: found {seed}, expected 0 or more")
    refuse_drawn(dataset, "divided anew")
    opened = int((dataset.side == OPEN).sum())
    if opened < 2:
        raise DataError(
            f"{dataset.path}: has {opened} open user, expected 2 or more to divide",
            "prepare the data set with more open users (--division)",
        )
    with publish(Path(out), overwrite=overwrite) as room:
        _write(dataset, share, seed, room)
    return Dataset(out)


def _write(dataset: Dataset, share: float, seed: int, room: Path) -> None:
    manifest = dataset.manifest
    opened = np.flatnonzero(dataset.side == OPEN)
    ids = dataset.user_ids.gather(opened)
    side = np.where(draw(ids, share, "pseudo-private", seed), PRIVATE, OPEN).astype(np.int8)
    held_out = np.zeros(len(ids), dtype=np.bool_)
    rest = side == OPEN
    held_out[rest] = draw(ids.filter(pl.Series(rest)), FOUNDATION_VAL_SHARE, "pseudo-held-out", seed)

    rows = dataset.rows(Part.FOUNDATION, Part.FOUNDATION_VAL)
    numbers = np.zeros(dataset.n_users, dtype=np.uint32)
    numbers[opened] = np.arange(len(opened), dtype=np.uint32)
    user, item, time = numbers[dataset.user[rows]], dataset.item[rows], dataset.time[rows]
    labels = {name: values[rows] for name, values in dataset.labels.items()}
    label = labels[dataset.label_name]
    cuts = cuts_in_time(time) if manifest["settings"]["split"] == "global-time" else None
    part = split(user, time, np.zeros(len(rows), dtype=np.bool_), side, held_out, cuts)
    need_parts(dataset, part, "dividing the open users")
    counts = causal_counts(user, item, time, label, part)
    causal = manifest["settings"]["features"] == "causal"
    context = fit_context(counts, part == Part.FOUNDATION) if causal else ()

    if dataset.oracle is not None:
        pl.DataFrame({"probability": dataset.oracle[rows]}).write_parquet(room / "oracle.parquet")
    sides = pl.Series("side", side).replace_strict(range(len(SIDES)), SIDES, return_dtype=pl.Enum(SIDES))
    users = pl.read_parquet(dataset.path / "users.parquet")[opened].with_columns(sides)
    users.write_parquet(room / "users.parquet")
    shutil.copyfile(dataset.path / "items.parquet", room / "items.parquet")
    columns = {"user": user, "item": item, "time": time} | labels | {name: counts[name] for name in COUNTS}
    write_rows(room, pl.DataFrame(columns | row_columns(dataset, rows)), part)
    write_derived_manifest(
        room,
        dataset,
        # Hashes of raw files, of the data set and of a division hang on private rows, so they are left out.
        raw=(),
        settings=manifest["settings"]
        | {
            "division": {"by": "pseudo-private", "share": share},
            "cuts": None if cuts is None else list(cuts),
            "cold_users": 0.0,
            "seed": seed,
        },
        counts=row_facts(user, part, side, labels) | {"rows_read": len(rows), "dropped": {}, "items": dataset.n_items},
        context=context,
        notes=["open users alone, some of whom play private users: for tuning, not for figures"],
    )
