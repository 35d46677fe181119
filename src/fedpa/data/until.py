"""Data as they were at an instant, and days to learn from, to choose by and to be judged on."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime

import polars as pl

from fedpa.data.source import Source
from fedpa.errors import ConfigError, DataError

__all__ = ["before", "check_instants", "instant", "instants"]

_FORM = "write a whole number in the unit of the log's times, or an ISO date such as 2022-05-01T00:00+08:00"


def instant(text: str) -> int:
    """An instant as the log's times are: a whole number as it is, a date as milliseconds since 1970.

    Parameters
    ----------
    text : str
        A date without a time is its midnight, one without a zone is universal time.

    Raises
    ------
    ConfigError
        If the text is neither.

    Examples
    --------
    >>> instant("1651334400000"), instant("2022-05-01"), instant("2022-05-01T08:00+08:00")
    (1651334400000, 1651363200000, 1651363200000)
    """
    try:
        return int(text)
    except ValueError:
        pass
    try:
        found = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ConfigError(f"time {text!r}: is neither a number nor a date", _FORM) from None
    zoned = found if found.tzinfo is not None else found.replace(tzinfo=UTC)
    return round(zoned.timestamp() * 1000)


def instants(text: str) -> tuple[int, int]:
    """Two instants with a comma between them, as `instant` reads each.

    Raises
    ------
    ConfigError
        If there are not two.
    """
    parts = text.split(",")
    if len(parts) != 2:
        raise ConfigError(f"cuts {text!r}: found {len(parts)} instants, expected two", "write --cuts FIRST,SECOND")
    return instant(parts[0]), instant(parts[1])


def check_instants(cuts: tuple[int, int] | None, until: int | None) -> None:
    """Refuse cuts that are out of order.

    Raises
    ------
    ConfigError
        If the first cut is not before the second, or the end of the data lies before the second.
    """
    if cuts is not None and not cuts[0] < cuts[1]:
        raise ConfigError(f"cuts: found {cuts[0]} and {cuts[1]}", "give the earlier instant first")
    if cuts is not None and until is not None and until < cuts[1]:
        raise ConfigError(
            f"until: {until} is before the second cut, {cuts[1]}",
            "end the data at the second cut, for no test rows, or after it",
        )


def before(source: Source, until: int) -> Source:
    """The same source without the rows of `until` and later, as if it had been read then.

    Tables of users and items have no times and stay as they are.

    Raises
    ------
    DataError
        If no row is left.
    """
    earlier = pl.col("time") < until
    interactions = source.interactions.filter(earlier)
    if not interactions.select(pl.len()).collect(engine="streaming").item():
        first = source.interactions.select(pl.col("time").min()).collect(engine="streaming").item()
        raise DataError(f"{source.name}: no row is earlier than {until}, the first is of {first}", "name a later time")
    exposed = source.random_exposure
    if exposed is not None:
        exposed = exposed.filter(earlier)
        if not exposed.select(pl.len()).collect(engine="streaming").item():
            exposed = None
    return dataclasses.replace(source, interactions=interactions, random_exposure=exposed)
