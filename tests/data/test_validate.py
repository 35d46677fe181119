from dataclasses import replace
from typing import Any

import polars as pl
import pytest

from fedpa.data.source import Feature, FeatureDivision, Source
from fedpa.data.validate import validate
from fedpa.errors import DataError


def log(**columns: Any) -> pl.LazyFrame:
    whole = {"user_id": [1, 2, 1], "item_id": [10, 11, 11], "time": [5, 6, 7], "click": [1, 0, 1]}
    return pl.DataFrame(whole | columns, strict=False).lazy()


GOOD = Source(
    "toy",
    (),
    log(),
    pl.DataFrame({"user_id": [1, 2, 3], "tier": ["a", "b", None]}).lazy(),
    pl.DataFrame({"item_id": [10, 11]}).lazy(),
    user_features=(Feature("tier"),),
    groups=("tier",),
)


def test_good_sources() -> None:
    validate(GOOD)
    validate(replace(GOOD, users=None, items=None, user_features=(), groups=()))
    validate(replace(GOOD, random_exposure=log()))


LOGS = {
    "no rows": (log().head(0), "toy interactions: no rows"),
    "label null": (
        log(click=[1, None, 1]),
        "label 'click': no value at user 2, item 11, time 6, expected 0 or 1\n",
    ),
    "label 2": (
        log(click=[1, 2, 3]),
        r"label 'click': 2 at user 2, item 11, time 6, expected 0 or 1 \(and 1 more such rows\)",
    ),
    "label NaN": (log(click=[1.0, 0.0, float("nan")]), "label 'click': nan at user 1, item 11, time 7"),
    "time null": (log(time=[5, None, 6]), "no time that is a number: user 2, item 11, time None"),
    "time NaN": (log(time=[5.0, 6.0, float("nan")]), "no time that is a number: user 1, item 11, time nan"),
    "time text": (log(time=["5", "6", "7"]), "column 'time' holds String"),
    "no user": (log(user_id=[1, None, 1]), "a row has no user_id: user None, item 11, time 6"),
    "users of another type": (log(user_id=["1", "2", "1"]), "user_id holds String, but Int64 in the table"),
    "users not in the table": (
        log(user_id=[5, 2, 4]),
        "2 values of user_id are not in the table of users: 4, 5\n",
    ),
    "items not in the table": (log(item_id=[10, 10, 9]), "1 values of item_id .* of items: 9\n"),
    "no label column": (log().drop("click"), "no column 'click'; the columns are user_id, item_id, time"),
}


@pytest.mark.parametrize("fault", LOGS)
def test_faults_of_logs(fault: str) -> None:
    frame, message = LOGS[fault]
    with pytest.raises(DataError, match=message) as caught:
        validate(replace(GOOD, interactions=frame))
    assert caught.value.message.startswith("toy interactions")
    with pytest.raises(DataError, match="toy random_exposure"):
        validate(replace(GOOD, random_exposure=frame))


def test_many_unknown_ids_are_counted() -> None:
    frame = log(user_id=range(100, 110), item_id=[10] * 10, time=[1] * 10, click=[0] * 10)
    with pytest.raises(DataError, match=r"10 values of user_id .* 100, 101, 102, 103, 104 and 5 more"):
        validate(replace(GOOD, interactions=frame))


def test_ids_of_tables() -> None:
    users = pl.DataFrame({"user_id": [2, 1, 2, 1, 1, 3], "tier": "a"}).lazy()
    message = "2 values of user_id occur more than once: 1 3 times, 2 2 times"
    with pytest.raises(DataError, match=message):
        validate(replace(GOOD, users=users))
    with pytest.raises(DataError, match="toy items: 1 of 2 rows have no item_id"):
        validate(replace(GOOD, items=pl.DataFrame({"item_id": [10, None]}).lazy()))
    with pytest.raises(DataError, match="toy items: no rows"):
        validate(replace(GOOD, items=pl.DataFrame({"item_id": [10]}).lazy().head(0)))


def test_columns_that_are_named_must_exist() -> None:
    with pytest.raises(DataError, match="toy users: no column 'town' to group users by; the columns are user_id"):
        validate(replace(GOOD, groups=("tier", "town")))
    with pytest.raises(DataError, match="toy items: no column 'kind'; the columns are item_id"):
        validate(replace(GOOD, item_features=(Feature("kind"),)))
    with pytest.raises(DataError, match="toy users: no column 'level'"):
        validate(replace(GOOD, division=FeatureDivision("level", ("x",))))
    with pytest.raises(DataError, match="none, as there is no such table"):
        validate(replace(GOOD, users=None))
