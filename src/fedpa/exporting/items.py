"""The catalogue as a device reads it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fedpa.errors import ConfigError
from fedpa.run import Run

__all__ = ["write_items"]


def write_items(file: Path, run: Run) -> None:
    """Write ids, codes and the counts at the end of the data of all items.

    Arrays of the NPZ file: ``ids`` [items], ``codes`` [items, features], ``views`` and ``clicks`` [items], and
    ``all_views`` and ``all_clicks`` [1], which are those of all items together.
    """
    if run.foundation is None:
        raise ConfigError(f"{run.path}: has no foundation, so no codes of items")
    data = run.dataset
    counts = run.rows.item_counts(data, np.array([int(data.time.max()) + 1]))
    ids = data.item_ids
    np.savez(
        file,
        ids=ids.to_numpy() if ids.dtype.is_integer() else np.array(ids.to_list(), np.str_),
        codes=run.foundation.inputs.item_codes(data),
        views=counts.views[0],
        clicks=counts.clicks[0],
        all_views=counts.open_views,
        all_clicks=counts.open_clicks,
    )
