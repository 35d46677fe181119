"""Items that a foundation knows by their ids."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl

from fedpa.data.dataset import Dataset

__all__ = ["known_items"]


def known_items(item_ids: pl.Series, dataset: Dataset) -> npt.NDArray[np.int32]:
    """For every item of a data set its place among known ids, from 1, or 0 [n_items]."""
    ids = dataset.item_ids
    if ids.dtype != item_ids.dtype or not len(item_ids):
        return np.zeros(len(ids), np.int32)
    place = item_ids.search_sorted(ids, side="left").to_numpy().astype(np.int64)
    found = np.minimum(place, len(item_ids) - 1)
    same = (item_ids.gather(found) == ids).to_numpy() & (place < len(item_ids))
    return np.where(same, found + 1, 0).astype(np.int32)
