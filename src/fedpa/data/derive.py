"""What every data set folder holds beside its users and items, and folders that are made from another one."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from fedpa.artifacts import FORMAT_VERSION, sha256, write_json
from fedpa.data.dataset import Dataset
from fedpa.data.divide import SIDES
from fedpa.data.encode import ROW, Numeric
from fedpa.data.split import PARTS, Part
from fedpa.errors import ConfigError, DataError

__all__ = [
    "DRAWN",
    "file_facts",
    "need_parts",
    "refuse_drawn",
    "row_columns",
    "row_facts",
    "version",
    "write_derived_manifest",
    "write_rows",
]

DRAWN = "leave-one-out"
"""The split, in the settings of a manifest, of a data set whose rows without a click were drawn."""


def write_rows(room: Path, table: pl.DataFrame, part: NDArray[np.uint8]) -> None:
    """Write ``interactions.parquet`` and ``splits.parquet``.

    Parameters
    ----------
    room : Path
        The folder that is being filled.
    table : polars.DataFrame
        ``user``, ``item``, ``time``, the labels, the counts and row features, sorted by user, then time.
    part : ndarray of uint8, shape ``[n]``
        `Part` codes.
    """
    parts = pl.Series("part", part).replace_strict(range(len(PARTS)), PARTS, return_dtype=pl.Enum(PARTS))
    numbers = pl.int_range(len(part), dtype=pl.UInt32, eager=True).alias("row")
    pl.DataFrame([numbers, parts]).write_parquet(room / "splits.parquet")
    del numbers, parts
    table.write_parquet(room / "interactions.parquet")


def row_columns(dataset: Dataset, rows: NDArray[np.int64]) -> dict[str, NDArray[np.int16]]:
    """Codes of the row features of some rows, a column each."""
    codes = dataset.row_codes[rows]
    return {feature.name: codes[:, place] for place, feature in enumerate(dataset.row_features)}


def row_facts(
    user: NDArray[np.uint32],
    part: NDArray[np.uint8],
    side: NDArray[np.integer[Any]],
    labels: Mapping[str, NDArray[np.int8]],
) -> dict[str, Any]:
    """Counts and click rates for the manifest.

    Parameters
    ----------
    user, part : ndarray, shape ``[n]``
    side : ndarray, shape ``[n_users]``
    labels : mapping of str to ndarray, shape ``[n]``
        The predicted one first.
    """
    click = next(iter(labels.values())) == 1
    sizes = np.bincount(part, minlength=len(PARTS)).tolist()
    clicks = np.bincount(part[click], minlength=len(PARTS)).tolist()
    users = [len(np.unique(user[part == code])) for code in range(len(PARTS))]
    return {
        "rows": len(part),
        "users": len(side),
        "sides": dict(zip(SIDES, np.bincount(side, minlength=len(SIDES)).tolist(), strict=True)),
        "parts": dict(zip(PARTS, sizes, strict=True)),
        "part_users": dict(zip(PARTS, users, strict=True)),
        "click_rate": {
            name: some / size if size else None for name, size, some in zip(PARTS, sizes, clicks, strict=True)
        },
        "label_rate": {name: float((values == 1).mean()) for name, values in labels.items()},
    }


def file_facts(path: Path) -> dict[str, Any]:
    """Name, size and hash of a file, as manifests hold them."""
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": sha256(path)}


def version() -> str:
    """The installed version of the package."""
    try:
        return importlib.metadata.version("fedpa")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def write_derived_manifest(
    room: Path,
    dataset: Dataset,
    *,
    raw: Sequence[Mapping[str, Any]],
    settings: Mapping[str, Any],
    counts: Mapping[str, Any],
    context: Sequence[Numeric],
    notes: Sequence[str],
) -> None:
    """Write the manifest of a folder made from `dataset`, after all its files.

    Encoders of users, items, groups and row features, labels and warnings are those of `dataset`.

    Parameters
    ----------
    room : Path
        The folder that is being filled.
    dataset : Dataset
        What it was made from.
    raw, settings, counts, notes
        As in the manifest.
    context : sequence of Numeric
        Encoders of counts fitted on the new folder's own foundation rows; none for `reference` features.
    """
    manifest = dataset.manifest
    of_rows = [content for content in manifest["features"]["context"] if content["name"].startswith(ROW)]
    kept = {key: manifest[key] for key in ("source", "label", "labels", "groups", "undated", "warnings")}
    features = manifest["features"] | {"context": [encoder.to_json() for encoder in context] + of_rows}
    content = kept | {
        "kind": "dataset",
        "format_version": FORMAT_VERSION,
        "fedpa_version": version(),
        "raw": list(raw),
        "settings": dict(settings),
        "counts": dict(counts),
        "features": features,
        "notes": [*manifest["notes"], *notes],
        "files": {path.name: file_facts(path) for path in sorted(room.iterdir())},
    }
    write_json(room / "manifest.json", content)


def refuse_drawn(dataset: Dataset, purpose: str) -> None:
    """Refuse a data set whose rows without a click were drawn: nobody was ever shown them.

    Raises
    ------
    ConfigError
        If `dataset` is one.
    """
    if dataset.manifest["settings"]["split"] == DRAWN:
        raise ConfigError(
            f"{dataset.path}: its negatives were drawn, so it cannot be {purpose}",
            "start from the data set that it was made from",
        )


def need_parts(dataset: Dataset, part: NDArray[np.uint8], why: str) -> None:
    """Refuse to write a folder that nothing can be trained on.

    Raises
    ------
    DataError
        If there are no rows of part ``foundation`` or ``train``.
    """
    for needed in (Part.FOUNDATION, Part.TRAIN):
        if not (part == needed).any():
            raise DataError(f"{dataset.path}: {why} leaves no rows for part {PARTS[needed]}", "use more data")
