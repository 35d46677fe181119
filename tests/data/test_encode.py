"""Vocabularies and bins: who gets which code."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpa.data.encode import Categorical, Numeric, encode_reference, fit, fit_context, from_json
from fedpa.data.source import Feature
from fedpa.errors import ArtifactError


def test_the_vocabulary_has_natural_order_and_zero_is_unknown() -> None:
    encoder = Categorical.fit("a", pl.Series([10, 9, None, 10]))
    assert encoder.vocabulary == ("9", "10")
    assert encoder.encode(pl.Series([9, 10, 11, None])).tolist() == [1, 2, 0, 0]
    assert encoder.size == 3


def test_only_the_most_frequent_values_are_kept_and_ties_go_to_the_smaller() -> None:
    encoder = Categorical.fit("a", pl.Series(["z", "z", "y", "x"]), max_values=2)
    assert encoder.vocabulary == ("x", "z")


def test_an_id_keeps_all_its_values_and_another_feature_a_thousand() -> None:
    ids = pl.Series(range(1500))
    assert fit(Feature("item_id"), ids).size == 1501
    assert fit(Feature("author"), ids).size == 1001


def test_a_column_without_values_has_only_the_unknown_code() -> None:
    empty = pl.Series("a", [None, None], dtype=pl.String)
    for encoder in (Categorical.fit("a", empty), Numeric.fit("a", empty)):
        assert encoder.encode(empty).tolist() == [0, 0]
    assert Categorical.fit("a", empty).encode(pl.Series(["x"])).tolist() == [0]
    assert Numeric.fit("a", empty).encode(pl.Series([1.0])).tolist() == [1]


def test_quantile_bins_hold_equal_shares_and_missing_numbers_are_zero() -> None:
    encoder = Numeric.fit("a", pl.Series(np.arange(3200)))
    codes = encoder.encode(pl.Series(np.arange(3200)))
    assert encoder.size == 33
    assert np.abs(np.bincount(codes)[1:] - 100).max() <= 1
    assert encoder.encode(pl.Series([None, float("nan"), -5.0, 1e12])).tolist() == [0, 0, 1, 32]


def test_few_distinct_numbers_make_few_bins() -> None:
    encoder = Numeric.fit("a", pl.Series([0, 0, 0, 0, 1, 1, 5]), "none")
    assert encoder.edges == (1.0, 5.0)
    assert encoder.encode(pl.Series([0, 1, 4, 5])).tolist() == [1, 2, 2, 3]


@given(st.lists(st.one_of(st.none(), st.floats(allow_nan=True)), max_size=40), st.randoms())
def test_numeric_codes_are_in_range_ascend_and_ignore_order(values: list[float | None], random) -> None:  # type: ignore[no-untyped-def]
    column = pl.Series("a", values, dtype=pl.Float64)
    encoder = Numeric.fit("a", column)
    codes = encoder.encode(column)
    assert all(0 <= code < encoder.size for code in codes)
    known = sorted((value, code) for value, code in zip(values, codes, strict=True) if code)
    assert [code for _, code in known] == sorted(code for _, code in known)
    random.shuffle(values)
    assert Numeric.fit("a", pl.Series("a", values, dtype=pl.Float64)) == encoder


@given(st.lists(st.one_of(st.none(), st.text(max_size=3)), max_size=30))
def test_encoders_survive_json(values: list[str | None]) -> None:
    column = pl.Series("a", values, dtype=pl.String)
    encoder = Categorical.fit("a", column)
    again = from_json(encoder.to_json())
    assert again == encoder
    assert again.encode(column).tolist() == [
        0 if value is None else encoder.vocabulary.index(value) + 1 for value in values
    ]


def test_numeric_encoders_survive_json() -> None:
    encoder = Numeric.fit("a", pl.Series([0.5, 0.25, 3.0]), "none")
    assert from_json(encoder.to_json()) == encoder


def test_json_that_is_no_encoder_is_refused() -> None:
    with pytest.raises(ArtifactError, match="lacks 'offset'"):
        from_json({"name": "a", "kind": "categorical", "vocabulary": []})
    with pytest.raises(ArtifactError, match="'hashed'"):
        from_json({"name": "a", "kind": "hashed"})


def test_context_encoders_are_fitted_on_the_given_rows_alone() -> None:
    names = ("item_views", "item_clicks", "open_views", "open_clicks", "user_views", "user_clicks")
    counts = {name: np.arange(6, dtype=np.uint32) for name in names}
    rows = np.array([True, True, True, False, False, False])
    encoders = fit_context(counts, rows)
    changed = {name: np.where(rows, values, 99).astype(np.uint32) for name, values in counts.items()}
    assert fit_context(changed, rows) == encoders
    assert [encoder.name for encoder in encoders] == ["item_rate", "item_views", "user_rate", "user_views"]
    assert [encoder.transform for encoder in encoders] == ["none", "log1p"] * 2


def test_reference_codes_know_every_value() -> None:
    codes, facts = encode_reference(pl.Series("a", ["b", "a", "b"]), binned=False)
    assert codes.tolist() == [1, 0, 1]
    assert facts == {"name": "a", "kind": "reference", "size": 2, "vocabulary": ["a", "b"]}
    codes, facts = encode_reference(pl.Series("a", [0.0, 1.0, 2.0]), binned=True)
    assert facts["size"] == 100
    assert codes.max() < 100
