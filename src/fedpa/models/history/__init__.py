"""Readers of a user's past: what it says of a candidate, as numbers beside the embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl
from torch import Tensor

from fedpa.models.history.light import LightHistory
from fedpa.models.history.reader import HistoryReader
from fedpa.models.history.transformer import TransformerHistory

__all__ = ["HistoryReader", "LightHistory", "TransformerHistory", "reader_from_spec"]


def reader_from_spec(spec: Mapping[str, Any], state: Mapping[str, Tensor], item_ids: pl.Series | None) -> HistoryReader:
    """A reader as its `spec` describes it, with its weights and the items that it knows by their ids.

    Raises
    ------
    ValueError
        If there is no such reader, or a transformer came without the items that it knows.
    """
    if spec["reader"] == LightHistory.name:
        return LightHistory.from_spec(spec, state)
    if spec["reader"] == TransformerHistory.name and item_ids is not None:
        return TransformerHistory.from_spec(spec, state, item_ids)
    raise ValueError(f"history {spec['reader']!r}: no such reader, or its items are missing")
