from pathlib import Path

import polars as pl
import pytest

from fedpa.errors import ConfigError, DataError
from fedpa.reproduction.ratings import Ratings, read_ratings
from reproduction.files import ITEMS, USERS, write_files


def frame(*rows: tuple[int, int, int]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=["user_id", "item_id", "time"], orient="row")


def test_the_latest_is_the_test_item_and_the_one_before_it_the_validation_item() -> None:
    rows = [(7, 50, 3), (5, 30, 1), (7, 20, 9), (5, 10, 2), (7, 30, 5), (5, 50, 8), (7, 10, 4)]
    ratings = Ratings.of("some", frame(*rows))
    assert ratings.user_ids.to_list() == [5, 7]
    assert ratings.item_ids.to_list() == [10, 20, 30, 50]
    assert ratings.user.tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert ratings.nth.tolist() == [0, 1, 2, 0, 1, 2, 3]
    assert ratings.item.tolist() == [3, 0, 2, 1, 2, 0, 3]
    assert ratings.test.tolist() == [3, 1]
    assert ratings.validation.tolist() == [0, 2]


def test_of_one_time_the_first_in_the_file_is_the_latest() -> None:
    # pandas: Series([4, 9, 9, 9]).rank(method="first", ascending=False) is [4, 1, 2, 3].
    ratings = Ratings.of("some", frame((1, 40, 4), (1, 30, 9), (1, 10, 9), (1, 20, 9)))
    assert ratings.item_ids.gather(ratings.item).to_list() == [30, 10, 20, 40]


@pytest.mark.parametrize(("name", "size"), [("movielens-100k", "100k"), ("movielens-1m", "1m")])
def test_official_files(tmp_path: Path, name: str, size: str) -> None:
    write_files(tmp_path / f"ml-{size}", size)
    ratings = read_ratings(name, tmp_path)
    assert (ratings.n_users, ratings.n_items) == (USERS, ITEMS)
    assert ratings.item_ids.to_list() == list(range(11, 11 + ITEMS))
    assert read_ratings(name, tmp_path / f"ml-{size}").test.tolist() == ratings.test.tolist()


def test_both_layouts_give_the_same_ratings(tmp_path: Path) -> None:
    small, large = write_files(tmp_path / "a", "100k"), write_files(tmp_path / "b", "1m")
    found = [read_ratings(name, raw) for name, raw in (("movielens-100k", small), ("movielens-1m", large))]
    assert found[0].item.tolist() == found[1].item.tolist()


def test_faults(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot reproduce 'movielens-20m'\n.*movielens-100k, movielens-1m"):
        read_ratings("movielens-20m", tmp_path)
    with pytest.raises(DataError, match=r"no ratings\.dat, the ratings of MovieLens 1M"):
        read_ratings("movielens-1m", tmp_path)
    write_files(tmp_path, "1m")
    (tmp_path / "movies.dat").unlink()
    with pytest.raises(DataError, match=r"movies\.dat: no such file"):
        read_ratings("movielens-1m", tmp_path)
    with pytest.raises(DataError, match="user 8 has 2 ratings, expected at least 3"):
        Ratings.of("some", frame((8, 1, 1), (8, 2, 2), (9, 1, 1), (9, 2, 2), (9, 3, 3)))
    with pytest.raises(DataError, match="user 9 rated item 2 more than once"):
        Ratings.of("some", frame((9, 1, 1), (9, 2, 2), (9, 2, 3)))
