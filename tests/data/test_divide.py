"""Who is open: by file, by feature, at random, and who is cold."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpa.data.divide import COLD, OPEN, PRIVATE, at_random, by_feature, by_file, draw, make_cold, uniform
from fedpa.data.source import FeatureDivision
from fedpa.errors import DataError

IDS = pl.Series("user_id", range(20_000), dtype=pl.Int64)


@pytest.mark.parametrize("ids", [IDS, IDS.cast(pl.String)])
def test_draws_are_uniform_and_differ_by_purpose_and_seed(ids: pl.Series) -> None:
    numbers = uniform(ids, "a", 0)
    assert ((numbers >= 0) & (numbers < 1)).all()
    shares = np.bincount((numbers * 10).astype(int), minlength=10) / len(ids)
    assert np.abs(shares - 0.1).max() < 0.01  # five standard errors
    for other in (uniform(ids, "b", 0), uniform(ids, "a", 1)):
        assert abs(np.corrcoef(numbers, other)[0, 1]) < 0.035


def test_draws_stay_the_same_from_version_to_version() -> None:
    assert uniform(pl.Series([7]), "open", 0)[0] == 0.6359512525421542
    assert uniform(pl.Series(["seven"]), "open", 0)[0] == 0.7071510475273144


@given(st.lists(st.integers(-(2**62), 2**62), unique=True, min_size=1, max_size=30), st.data())
def test_a_users_draw_does_not_depend_on_other_users(ids: list[int], data: st.DataObject) -> None:
    some = data.draw(st.lists(st.sampled_from(ids), unique=True, min_size=1))
    every = dict(zip(ids, uniform(pl.Series(ids), "p", 3).tolist(), strict=True))
    assert uniform(pl.Series(some), "p", 3).tolist() == [every[each] for each in some]


@given(st.integers(2, 6), st.sampled_from([1e-9, 0.5, 1 - 1e-9]))
def test_a_draw_takes_someone_and_leaves_someone(n: int, share: float) -> None:
    chosen = draw(pl.Series(range(n)), share, "p", 0)
    assert 0 < chosen.sum() < n


def test_a_share_of_nothing_takes_nobody() -> None:
    assert not draw(pl.Series([1, 2]), 0.0, "p", 0).any()


def test_the_published_division_opens_four_fifths_of_the_listed_and_a_fifth_of_the_others() -> None:
    values = pl.Series(["high", "low", None, "full"] * 5000)
    side = by_feature(IDS, values, FeatureDivision("degree", ("high", "low")), 0)
    shares = [(side[start::4] == OPEN).mean() for start in range(4)]
    assert shares == pytest.approx([0.8, 0.8, 0.2, 0.2], abs=0.03)
    assert set(side.tolist()) == {OPEN, PRIVATE}


def test_half_of_the_users_are_open_at_random() -> None:
    assert (at_random(IDS, 5) == OPEN).mean() == pytest.approx(0.5, abs=0.02)


def test_a_tenth_of_the_private_users_is_cold() -> None:
    side = at_random(IDS, 0)
    cold = make_cold(IDS, side, 0.1, 0)
    assert ((cold == OPEN) == (side == OPEN)).all()
    assert (cold[side == PRIVATE] == COLD).mean() == pytest.approx(0.1, abs=0.02)
    assert (make_cold(IDS, side, 0.0, 0) == side).all()


@pytest.mark.parametrize("ids", [pl.Series([3, 1, 2]), pl.Series(["3", "1", "2"])])
def test_a_file_divides_the_users_that_it_names(tmp_path: Path, ids: pl.Series) -> None:
    path = tmp_path / "division.csv"
    path.write_text("side,user_id\nopen,1\nprivate,3\nopen,99\n")
    assert by_file(ids, path).tolist() == [PRIVATE, OPEN, -1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("user_id,side\n1,open\n2,Open\n", r"line 3: user 2 has side 'Open', expected open or private"),
        ("user_id,side\n1,\n", r"line 2: user 1 has side None"),
        ("user_id,side\n1,open\n2,open\n1,private\n", "line 4: user 1 is named a second time"),
        ("user_id,side\nx,open\n", "line 2: user_id 'x' does not read as Int64"),
        ("user,side\n1,open\n", "column 'user_id' is missing, found user, side"),
        ("", "cannot read the division"),
    ],
)
def test_a_file_that_cannot_be_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "division.csv"
    path.write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        by_file(pl.Series([1, 2]), path)
    assert str(path) in caught.value.message
    assert caught.value.fix is not None


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.csv"):
        by_file(pl.Series([1]), tmp_path / "none.csv")
