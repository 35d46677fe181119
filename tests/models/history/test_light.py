"""The light reader by hand and by its properties."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fedpa.data.dataset import Dataset, Part
from fedpa.data.past import Past, Queries
from fedpa.data.statistics import Counted
from fedpa.federation.rows import ShardRows
from fedpa.models.foundation import Foundation, load_foundation
from fedpa.models.history import LightHistory
from prepared import reading, small


def logit(rate: float) -> float:
    return float(np.log(rate / (1 - rate)))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return small(tmp_path_factory).dataset


@pytest.fixture(scope="module")
def foundation(tmp_path_factory: pytest.TempPathFactory) -> Foundation:
    return reading(tmp_path_factory)


def query(candidates: list[int], views: int = 3) -> Queries:
    """A user of four rows, items 0, 1, 2, 0 with clicks 1, 0, 1, 1, of which the first `views` may be read."""
    n = len(candidates)
    counts = np.full((1, n), 8), np.full((1, n), 6)
    return Queries(
        np.array([0]), np.array([50]), np.array([views]), np.array([2]), np.array([candidates]), *counts,
        np.array([98]), np.array([49]),
    )  # fmt: skip


PAST = Past(
    Counted(
        np.zeros(4, np.uint32),
        np.array([0, 1, 2, 0], np.uint32),
        np.array([1, 2, 3, 4]),
        np.array([True, False, True, True]),
        np.full(4, Part.TRAIN, np.uint8),
    ),
    1,
)
KINDS = np.array([[3], [5], [2], [4]])  # in steps of two: kinds 1, 2, 1, 2


@pytest.mark.parametrize("half_life", [None, 1.0])
def test_evidence_by_hand(half_life: float | None) -> None:
    reader = LightHistory([("colour", 2)], half_life=half_life)
    (found,) = reader.read(PAST, KINDS, query([0, 3]))
    assert reader.names == (
        "item_rate", "item_views", "user_rate", "user_views",
        "colour_rate", "colour_views", "same_item_rate", "same_item_views",
    )  # fmt: skip
    own = (2 + 5 * 0.5) / (3 + 5)
    first = [logit((6 + 10 * 0.5) / (8 + 10)), np.log1p(8), logit(own), np.log1p(3)]
    old, middle, new = (1.0, 1.0, 1.0) if half_life is None else (0.25, 0.5, 1.0)
    of_kind = [(old + new, old + new), (middle, 0.0)]  # seen and clicked: items 0 and 2; item 1
    of_item = [(old, old), (0.0, 0.0)]
    for row, *pairs in zip(found, of_kind, of_item, strict=True):
        expected = list(first)
        for seen, liked in pairs:
            expected += [logit((liked + 3 * own) / (seen + 3)) - logit(own), np.log1p(seen)]
        assert row.tolist() == pytest.approx(expected, abs=1e-6)


def test_many_candidates_give_the_numbers_of_one(data: Dataset, foundation: Foundation) -> None:
    """Tables of values and comparison of pairs are two ways to one sum."""
    reader = foundation.inputs.history
    assert reader is not None
    kinds = reader.kinds_of(data)
    rows = ShardRows.of(data, dtype=torch.float32, device=torch.device("cpu"))
    queries = rows.queries().at(np.flatnonzero(rows.part == Part.TEST)[:30])
    items = np.broadcast_to(np.arange(data.n_items), (30, data.n_items))
    counts = (np.repeat(each, data.n_items, 1) for each in (queries.item_views, queries.item_clicks))
    whole = reader.read(
        data.past, kinds, replace(queries, items=items, item_views=next(counts), item_clicks=next(counts))
    )
    alone = reader.read(data.past, kinds, queries)
    assert np.allclose(whole[np.arange(30), queries.items[:, 0]], alone[:, 0], atol=1e-5)


def test_a_query_has_the_same_bytes_in_any_company(data: Dataset, foundation: Foundation) -> None:
    reader = foundation.inputs.history
    assert reader is not None
    kinds = reader.kinds_of(data)
    queries = ShardRows.of(data, dtype=torch.float32, device=torch.device("cpu")).queries()
    whole = reader.read(data.past, kinds, queries)
    for part in np.array_split(np.random.default_rng(0).permutation(len(queries)), 7):
        assert reader.read(data.past, kinds, queries.at(part)).tobytes() == whole[part].tobytes()


def test_it_is_standardised_over_the_rows_of_open_users(data: Dataset, foundation: Foundation) -> None:
    dense = foundation.inputs.open_rows(data, Part.FOUNDATION, torch.device("cpu")).dense
    assert dense is not None
    assert dense.mean(0).abs().max() < 1e-4
    assert (dense.std(0) < 1.01).all()


def test_a_saved_foundation_reads_the_same(data: Dataset, foundation: Foundation, tmp_path: Path) -> None:
    foundation.save(tmp_path / "f")
    loaded = load_foundation(tmp_path / "f")
    assert loaded.hash == foundation.hash
    one, other = (
        f.inputs.open_rows(data, Part.FOUNDATION_VAL, torch.device("cpu")).dense for f in (foundation, loaded)
    )
    assert one is not None and other is not None
    assert torch.equal(one, other)


def test_the_hash_covers_the_reader(foundation: Foundation) -> None:
    reader = foundation.inputs.history
    assert isinstance(reader, LightHistory)
    changed = LightHistory.from_spec({**reader.spec(), "length": 7}, dict(reader.state()))
    other = Foundation.of(foundation.model, foundation.features, {}, replace(foundation.inputs, history=changed))
    assert other.hash != foundation.hash


def test_items_that_open_users_never_saw_are_scored_by_features(data: Dataset, foundation: Foundation) -> None:
    inputs = foundation.inputs
    assert inputs.item_ids is not None
    seen = np.unique(data.item[data.rows(Part.FOUNDATION)])
    codes = inputs.item_codes(data)
    assert (codes[seen, -1] > 0).all()
    assert len(np.unique(codes[seen, -1])) == len(seen)
    fewer = replace(inputs, item_ids=inputs.item_ids.head(3))
    unknown = fewer.item_codes(data)[:, -1] == 0
    assert unknown.sum() == data.n_items - 3
    assert not foundation.model.named_table("item", "item_id")[0].any()
