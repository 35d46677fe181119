import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpa.data import kuairand
from fedpa.data.reference import reference_codes
from fedpa.errors import DataError
from shared import need


def test_the_encoding_of_the_reference_rounds_is_reproduced() -> None:
    source = kuairand.load(need("data/kuairand-pure"))
    assert source.reference is not None
    assert source.users is not None
    assert source.items is not None
    with np.load(need("golden/three_rounds.npz")) as golden:
        assert tuple(golden["data/user_feature_names"]) == source.reference.user
        assert tuple(golden["data/video_feature_names"]) == source.reference.item
        for names, table, key, ids, codes, weights in (
            (source.reference.user, source.users, "user_id", "users", "user_features", "user"),
            (source.reference.item, source.items, "item_id", "videos", "video_features", "video"),
        ):
            frame = table.collect()
            kept = frame.get_column(key).is_in(golden[f"data/{ids}"].tolist())
            assert frame.get_column(key).filter(kept).to_list() == golden[f"data/{ids}"].tolist()
            for column, name in enumerate(names):
                binned = name in source.reference.binned
                found, known = reference_codes(frame.get_column(name), binned)
                assert found.dtype == pl.Int32
                assert found.filter(kept).to_list() == golden[f"data/{codes}"][:, column].tolist(), name
                size = golden[f"init/embedding_{weights}_features.{name}.weight"].shape[0]
                assert len(known) + binned == size, name


def test_numbers_sort_as_numbers_and_text_as_text() -> None:
    codes, known = reference_codes(pl.Series("x", [12, None, 2, 12]), False)
    assert (codes.to_list(), known) == ([2, 0, 1, 2], ["-100", "2", "12"])
    codes, known = reference_codes(pl.Series("x", ["2", None, "12", "12,65"]), False)
    assert (codes.to_list(), known) == ([3, 0, 1, 2], ["-100", "12", "12,65", "2"])
    assert codes.name == "x"


def test_a_negative_number_sorts_around_the_missing_value() -> None:
    codes, known = reference_codes(pl.Series("x", [-124, None, 1]), False)
    assert (codes.to_list(), known) == ([0, 1, 2], ["-124", "-100", "1"])


def test_bins_lie_between_the_1st_and_the_99th_percentile() -> None:
    # 101 values, 0 to 10 in steps of 0.1 on the log1p scale: the percentiles are 0.1 and 9.9, so edges are
    # 0.1, 0.2, ..., 9.9, and a value 0.05 above an edge has that edge and all before it below.
    table = np.arange(101) / 10
    _, edges = reference_codes(pl.Series("x", np.expm1(table)), True)
    assert np.allclose(edges, np.arange(1, 100) / 10, rtol=0, atol=1e-12)
    table[[3, 57]] += 0.05
    codes, _ = reference_codes(pl.Series("x", np.expm1(table)), True)
    assert codes[[0, 3, 57, 100]].to_list() == [0, 3, 57, 99]


def test_bins_are_closed_on_the_right() -> None:
    codes, edges = reference_codes(pl.Series("x", [5.0, 5.0, None]), True)
    assert edges == [np.log1p(5.0)] * 99
    assert codes.to_list() == [0, 0, 0]  # a value at an edge has no edge below it; a missing value has code 0


@pytest.mark.parametrize("values", [["a"], [None, None], [1.0, -1.0]])
def test_what_cannot_be_binned(values: list[object]) -> None:
    with pytest.raises(DataError, match="'x': cannot be cut into bins"):
        reference_codes(pl.Series("x", values), True)


@given(st.lists(st.none() | st.integers(-200, 200) | st.integers(), min_size=1, max_size=50))
def test_codes_are_positions_in_the_vocabulary(values: list[int | None]) -> None:
    values = [value if value is None or abs(value) < 2**62 else 0 for value in values]
    codes, known = reference_codes(pl.Series("x", values, dtype=pl.Int64), False)
    assert [known[code] for code in codes] == [str(-100 if value is None else value) for value in values]
    assert [int(value) for value in known] == sorted({-100 if value is None else value for value in values})
