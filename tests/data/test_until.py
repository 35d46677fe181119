"""Instants as people write them, and data as they were at one."""

from __future__ import annotations

import polars as pl
import pytest

from fedpa.data.source import Source
from fedpa.data.until import before, check_instants, instant, instants
from fedpa.errors import ConfigError, DataError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("17", 17),
        ("-5", -5),
        ("1970-01-02", 86_400_000),
        ("1970-01-02T00:00:00.250", 86_400_250),
        ("1970-01-02T08:00+08:00", 86_400_000),
        ("1970-01-02T00:00Z", 86_400_000),
    ],
)
def test_instants_are_numbers_or_dates(text: str, expected: int) -> None:
    assert instant(text) == expected
    assert instants(f"{text},1970-01-05") == (expected, 4 * 86_400_000)


@pytest.mark.parametrize("text", ["tomorrow", "", "2022-13-01", "1.5"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is neither a number nor a date"):
        instant(text)


def test_two_instants_in_order() -> None:
    with pytest.raises(ConfigError, match="found 1 instants, expected two"):
        instants("5")
    check_instants((1, 2), 2)
    check_instants((1, 2), None)
    with pytest.raises(ConfigError, match="cuts: found 2 and 2"):
        check_instants((2, 2), None)
    with pytest.raises(ConfigError, match="until: 4 is before the second cut, 5"):
        check_instants((2, 5), 4)


def test_rows_of_the_instant_and_later_are_not_there_yet() -> None:
    log = pl.LazyFrame({"user_id": [1, 1, 2], "item_id": [1, 2, 3], "time": [3, 5, 4], "click": [0, 1, 1]})
    exposed = pl.LazyFrame({"user_id": [1], "item_id": [1], "time": [4], "click": [0]})
    source = Source("hand", (), log, None, None, random_exposure=exposed)
    cut = before(source, 5)
    assert cut.interactions.collect()["time"].to_list() == [3, 4]
    assert cut.random_exposure is not None
    assert cut.random_exposure.collect().height == 1
    assert before(source, 4).random_exposure is None
    with pytest.raises(DataError, match="no row is earlier than 3, the first is of 3"):
        before(source, 3)
