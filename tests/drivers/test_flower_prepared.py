"""Rows that were prepared once are those that a node would prepare again."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedpa.data.dataset import Dataset
from fedpa.drivers.flower.prepared import PreparedNode
from fedpa.federation.rows import ShardRows
from fedpa.methods import FederatedMethod, find_method
from fedpa.models.foundation import Foundation
from prepared import reading, small


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return small(tmp_path_factory).dataset


def node(dataset: Dataset, foundation: Foundation | None, folder: Path, **settings: Any) -> PreparedNode:
    method = find_method("fedpa").configured("default", {"item_counts": 5} | settings, foundation)
    assert isinstance(method, FederatedMethod)
    return PreparedNode(method, foundation, dataset, seed=0, folder=folder / "node-0")


def equal(one: ShardRows, other: ShardRows) -> bool:
    """Whether every field but the item counts is the same, to the bit."""

    def same(a: Any, b: Any) -> bool:
        if isinstance(a, dict):
            return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
        if isinstance(a, torch.Tensor):
            return a.dtype == b.dtype and torch.equal(a, b)
        if isinstance(a, np.ndarray):
            return a.dtype == b.dtype and np.array_equal(a, b)
        return a is None and b is None

    names = [field.name for field in dataclasses.fields(ShardRows) if field.name != "tally"]
    return all(same(getattr(one, name), getattr(other, name)) for name in names)


@pytest.mark.parametrize("reads", [False, True])
def test_they_are_read_as_they_were_made(
    dataset: Dataset, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, reads: bool
) -> None:
    foundation = reading(tmp_path_factory) if reads else small(tmp_path_factory).foundation
    first = node(dataset, foundation, tmp_path)
    tally = first.tally()
    made = first.rows(tally)
    assert first.prepared.is_file() and (made.dense is not None) == reads
    second = node(dataset, foundation, tmp_path)
    second.method.rows = None  # type: ignore[method-assign,assignment]
    found = second.rows(tally)
    assert equal(made, found) and found.tally is tally


def test_they_are_made_anew_when_they_do_not_fit(
    dataset: Dataset, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    foundation = small(tmp_path_factory).foundation
    first = node(dataset, foundation, tmp_path)
    tally = first.tally()
    made = first.rows(tally)
    before = first.prepared.read_bytes()
    assert not equal(node(dataset, foundation, tmp_path, history="online").rows(tally), made)
    assert first.prepared.read_bytes() != before
    first.prepared.write_bytes(before[:1000])
    assert equal(node(dataset, foundation, tmp_path).rows(tally), made)
    first.forget_rows()
    assert not first.prepared.exists()
    assert equal(node(dataset, foundation, tmp_path).rows(tally), made)
