"""Every source by its name."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from fedpa.data import kuairand, kuaisar, movielens, tables
from fedpa.data.source import Source
from fedpa.errors import ConfigError

__all__ = ["SOURCES", "open_source"]

SOURCES: Mapping[str, Callable[[Path], Source]] = {
    "kuairand-pure": partial(kuairand.load, variant="pure"),
    "kuairand-1k": partial(kuairand.load, variant="1k"),
    "kuairand-27k": partial(kuairand.load, variant="27k"),
    "kuaisar-r": partial(kuaisar.load, part="R"),
    "kuaisar-s": partial(kuaisar.load, part="S"),
    "movielens-100k": partial(movielens.load, size="100k"),
    "movielens-1m": partial(movielens.load, size="1m"),
    "tables": tables.load,
}
"""What opens a folder of raw files, by the name of the source."""


def open_source(name: str, raw: Path, *, schema: Path | None = None) -> Source:
    """Open a folder of raw files.

    Parameters
    ----------
    name : str
        A key of `SOURCES`.
    raw : Path
        The folder.
    schema : Path, optional
        For ``tables``: the YAML file, by default ``schema.yaml`` in `raw`.

    Raises
    ------
    ConfigError
        If the name is unknown, or a schema is given for a source that has its own.
    DataError
        If the files are not what the source's layout says.
    """
    if name not in SOURCES:
        close = difflib.get_close_matches(name, SOURCES, n=1)
        meant = f"did you mean {close[0]!r}? " if close else ""
        raise ConfigError(f"unknown source {name!r}", f"{meant}use one of {', '.join(SOURCES)}")
    if schema is None:
        return SOURCES[name](raw)
    if name != "tables":
        raise ConfigError(f"source {name!r} takes no schema", "leave the schema out, or use the source `tables`")
    return tables.load(schema, raw)
