"""Users' own rows as their devices would have logged them: what was shown, and what was known of it then."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from fedpa.data.dataset import Part
from fedpa.data.encode import ROW
from fedpa.errors import ConfigError
from fedpa.exporting.exportable import file_stem
from fedpa.run import Run

__all__ = ["write_own_rows"]


def write_own_rows(folder: Path, run: Run, users: npt.NDArray[np.int64]) -> None:
    """Write a CSV file for each of some users, oldest row first; randomly exposed rows are not among them.

    Columns: ``item``, ``click``, ``time``; ``item_views``, ``item_clicks``, ``all_views``, ``all_clicks``, the counts
    that came with the item; the codes of the row's own features, such as ``row:tab``; ``train``, 1 where the run
    trained on the row.

    Raises
    ------
    ConfigError
        If the data set has rows that nobody was shown, which no device logs.
    """
    data, rows = run.dataset, run.rows
    if "counted.parquet" in data.manifest["files"]:
        raise ConfigError(
            f"{data.path}: has drawn rows that nobody was shown, so there are no own rows to write",
            "export without them, or a run on the data set that this one was derived from",
        )
    own = {
        feature.name: rows.context.numpy()[:, place]
        for place, feature in enumerate(data.context_features)
        if feature.name.startswith(ROW)
    }
    folder.mkdir()
    for local in users:
        every = np.arange(rows.begin[local], rows.begin[local] + rows.total[local])
        shown = every[rows.part[every] != Part.UNBIASED]
        here = shown[np.argsort(rows.row[shown])]
        table = pl.DataFrame(
            {
                "item": data.item_ids.gather(rows.items.numpy()[here]),
                "click": rows.labels.numpy()[here].astype(np.int8),
                "time": rows.time[here],
                "item_views": rows.item_views[here],
                "item_clicks": rows.item_clicks[here],
                "all_views": rows.open_views[here],
                "all_clicks": rows.open_clicks[here],
                **{name: codes[here] for name, codes in own.items()},
                "train": (rows.part[here] == Part.TRAIN).astype(np.int8),
            }
        )
        table.write_csv(folder / f"{file_stem(data.user_ids[int(rows.users[local])])}.csv")
