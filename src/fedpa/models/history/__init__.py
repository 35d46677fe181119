"""Readers of a user's past: what it says of a candidate, as numbers beside the embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedpa.models.history.light import LightHistory

__all__ = ["HistoryReader", "LightHistory", "reader_from_spec"]

HistoryReader = LightHistory


def reader_from_spec(spec: Mapping[str, Any]) -> HistoryReader:
    """A reader as its `spec` describes it."""
    return LightHistory.from_spec(spec)
