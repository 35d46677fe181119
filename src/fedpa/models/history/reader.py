"""What reads a user's past."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray
from torch import Tensor

from fedpa.data.dataset import Dataset
from fedpa.data.past import Past, Queries

__all__ = ["Floats", "HistoryReader"]

Floats = NDArray[np.float32]


class HistoryReader(Protocol):
    """Turns a user's past into numbers about a candidate, which a backbone reads beside its embeddings.

    It is made from open users' rows and frozen from then on. What it says of a query depends, to the bit, on nothing
    but that query and the rows of the past that the query may read.
    """

    @property
    def name(self) -> str:
        """As in the setting ``reader``."""
        ...

    @property
    def width(self) -> int:
        """How many numbers it gives per candidate."""
        ...

    @property
    def item_ids(self) -> pl.Series | None:
        """Ids of the items that it knows by their ids, ascending, if there are any."""
        ...

    def spec(self) -> dict[str, Any]:
        """All but weights and ids, as JSON."""
        ...

    def state(self) -> Mapping[str, Tensor]:
        """Trained weights; none where there is nothing to train."""
        ...

    def kinds_of(self, dataset: Dataset) -> NDArray[np.int32]:
        """Codes that it reads of a data set's items [n_items, columns]."""
        ...

    def read(self, past: Past, kinds: NDArray[np.integer], queries: Queries) -> Floats:
        """Evidence of every candidate [queries, candidates, width]; `kinds` is what `kinds_of` gave."""
        ...
