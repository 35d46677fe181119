from pathlib import Path

import pytest

from fedpa.data import movielens
from fedpa.data.validate import validate
from fedpa.errors import ConfigError, DataError


@pytest.fixture
def small(tmp_path: Path) -> Path:
    folder = tmp_path / "ml-100k"
    folder.mkdir()
    (folder / "u.data").write_text("1\t2\t4\t881250949\n2\t1\t3\t881250950\n")
    (folder / "u.user").write_text("1|24|M|technician|85711\n2|53|F|other|94043\n")
    flags = ["0"] * 19
    comedy, none = [*flags[:5], "1", *flags[6:]], ["1", *flags[1:]]
    (folder / "u.item").write_bytes(
        "\n".join(
            ["1|Café (1995)|01-Jan-1995||http://x|" + "|".join(comedy), "2|unknown||||" + "|".join(none), ""]
        ).encode("latin-1")
    )
    return tmp_path


@pytest.fixture
def large(tmp_path: Path) -> Path:
    (tmp_path / "ratings.dat").write_text("1::10::5::978300760\n2::11::1::978300761\n")
    (tmp_path / "users.dat").write_text("1::F::1::10::48067\n2::M::56::16::70072-1\n")
    (tmp_path / "movies.dat").write_bytes(
        "10::Café: Part 2 (1977)::Comedy|Sci-Fi\n11::Story (a tale)::Children's\n".encode("latin-1")
    )
    return tmp_path


def test_100k(small: Path) -> None:
    source = movielens.load(small)
    validate(source)
    assert source.interactions.collect().rows() == [(1, 2, 881250949000, 1), (2, 1, 881250950000, 0)]
    assert source.users is not None
    assert source.users.collect().rows() == [(1, "M", "20-29", "technician"), (2, "F", "50-59", "other")]
    assert source.items is not None
    columns = ["item_id", "year", "genre_unknown", "genre_comedy", "genre_childrens"]
    assert source.items.select(columns).collect().rows() == [
        (1, 1995.0, "0", "1", "0"),
        (2, None, "1", "0", "0"),
    ]
    assert source.groups == ("gender", "age_range")


def test_1m(large: Path) -> None:
    source = movielens.load(large, "1m")
    validate(source)
    assert source.interactions.collect().rows() == [(1, 10, 978300760000, 1), (2, 11, 978300761000, 0)]
    assert source.users is not None
    assert source.users.collect().rows() == [(1, "F", "1", "10"), (2, "M", "56", "16")]
    assert source.items is not None
    columns = ["item_id", "year", "genre_comedy", "genre_sci_fi", "genre_childrens"]
    assert source.items.select(columns).collect().rows() == [
        (10, 1977.0, "1", "1", "0"),
        (11, None, "0", "0", "1"),
    ]
    assert len(source.item_features) == 19


def test_faults(small: Path, large: Path) -> None:
    with pytest.raises(ConfigError, match="unknown MovieLens size"):
        movielens.load(small, "20m")  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"u\.user: expected the folder of MovieLens 100K, but it is not a folder"):
        movielens.load(small / "ml-100k" / "u.user")
    with pytest.raises(DataError, match=r"no ratings\.dat, the ratings of MovieLens 1M\n.*name the folder"):
        movielens.load(small / "ml-100k", "1m")
    path = large / "movies.dat"
    path.write_text("10::A (1977)::Comedie\n")
    with pytest.raises(DataError, match=r"movies\.dat, line 1: genre 'Comedie'"):
        movielens.load(large, "1m")
    path.write_text("10::A (1977)::Comedy\n11::B\n")
    with pytest.raises(DataError, match=r"movies\.dat, line 2: 2 fields, expected 3"):
        movielens.load(large, "1m")
    path.write_text("ten::A (1977)::Comedy\n")
    with pytest.raises(DataError, match="column 'item_id': 'ten'"):
        movielens.load(large, "1m")
    (large / "ratings.dat").write_text("1::10::5::978300760\n2::11::good::978300761\n")
    path.write_text("10::A (1977)::Comedy\n11::B (1977)::Comedy\n")
    with pytest.raises(DataError, match=r"ratings\.dat, line 2, column 'rating': 'good'"):
        validate(movielens.load(large, "1m"))
