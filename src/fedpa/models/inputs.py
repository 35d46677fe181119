"""What a backbone reads: codes of users, items and the row, known items, and what a user's past says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from torch import Tensor

from fedpa.data.dataset import Dataset, Part
from fedpa.data.past import Queries
from fedpa.errors import DataError
from fedpa.federation.rows import ShardRows
from fedpa.models.history import HistoryReader
from fedpa.models.known import known_items

__all__ = ["ITEM_ID", "CodedRows", "Examples", "Inputs", "open_examples", "open_queries"]

ITEM_ID = "item_id"
"""Name of the item feature whose codes are the places of items that the foundation knows; 0 stands for all others."""

_ROWS = 1 << 16


class CodedRows(NamedTuple):
    """User, item and context codes [rows, features], what the past says or None [rows, width], and labels [rows]."""

    user: Tensor
    item: Tensor
    context: Tensor
    dense: Tensor | None
    label: Tensor

    def __len__(self) -> int:
        return len(self.label)

    def at(self, chosen: Tensor | slice) -> CodedRows:
        """Some of the rows."""
        dense = None if self.dense is None else self.dense[chosen]
        return CodedRows(self.user[chosen], self.item[chosen], self.context[chosen], dense, self.label[chosen])

    def pieces(self, size: int = _ROWS) -> Iterator[CodedRows]:
        """All rows, in order, so many at a time."""
        return (self.at(slice(begin, begin + size)) for begin in range(0, len(self), size))

    def joined(self, other: CodedRows) -> CodedRows:
        """These rows, then the other's."""
        dense = None if self.dense is None or other.dense is None else torch.cat([self.dense, other.dense])
        user, item, context, label = (
            torch.cat([getattr(self, name), getattr(other, name)]) for name in ("user", "item", "context", "label")
        )
        return CodedRows(user, item, context, dense, label)


class Examples(NamedTuple):
    """Moments with one candidate each, context codes [rows, features], and what is to be predicted [rows, ...]."""

    queries: Queries
    context: Tensor
    label: Tensor

    def joined(self, other: Examples) -> Examples:
        """These, then the others."""
        mine, theirs = vars(self.queries), vars(other.queries)
        queries = Queries(**{name: np.concatenate([mine[name], theirs[name]]) for name in mine})
        return Examples(queries, torch.cat([self.context, other.context]), torch.cat([self.label, other.label]))


@dataclass(frozen=True)
class Inputs:
    """How rows of a data set become what a backbone reads.

    Attributes
    ----------
    history : HistoryReader or None
        What reads a user's past; without one the model knows nothing of it but two counters.
    item_ids : Series or None
        Ids of the items that have an embedding of their own, ascending; the others are scored by their features.
    """

    history: HistoryReader | None = None
    item_ids: pl.Series | None = None

    def item_codes(self, dataset: Dataset) -> npt.NDArray[np.int32]:
        """Item codes of the whole catalogue [n_items, features]."""
        if self.item_ids is None:
            return dataset.item_codes
        return np.concatenate([dataset.item_codes, known_items(self.item_ids, dataset)[:, None]], 1)

    def read(self, dataset: Dataset, queries: Queries) -> Tensor | None:
        """What the past says of every candidate [queries, candidates, width]; None for a model that reads none."""
        if self.history is None:
            return None
        return torch.from_numpy(self.history.read(dataset.past, self.history.kinds_of(dataset), queries))

    def shard_rows(self, dataset: Dataset, rows: ShardRows, each: int = 1) -> ShardRows:
        """A shard's rows with what the past says of them; `each` consecutive ones are candidates of one moment."""
        dense = self.read(dataset, rows.queries(each))
        if dense is None:
            return replace(rows, dense=None)
        return replace(rows, dense=dense.flatten(0, 1).to(rows.items.device, rows.labels.dtype))

    def private_rows(self, dataset: Dataset, rows: ShardRows, chosen: npt.NDArray[Any] | None = None) -> CodedRows:
        """Some rows of a shard, by default all, in single precision."""
        here = np.arange(len(rows.row)) if chosen is None else np.flatnonzero(chosen)
        own = Examples(rows.queries().at(here), rows.context.cpu()[here], rows.labels.cpu()[here])
        return self.coded(dataset, own, rows.items.device)

    def open_rows(self, dataset: Dataset, part: Part, device: torch.device) -> CodedRows:
        """All rows of one of the open users' parts.

        Raises
        ------
        DataError
            If there are none.
        """
        return self.coded(dataset, open_examples(dataset, part), device)

    def coded(
        self, dataset: Dataset, examples: Examples, device: torch.device, dense: Tensor | None = None
    ) -> CodedRows:
        """Examples as the backbone reads them; `dense` takes the place of what the reader says [rows, width]."""
        queries = examples.queries
        user = torch.from_numpy(dataset.user_codes[queries.user])
        item = torch.from_numpy(self.item_codes(dataset)[queries.items[:, 0]])
        if dense is None and (read := self.read(dataset, queries)) is not None:
            dense = read.flatten(0, 1)
        return CodedRows(
            user.to(device, torch.int64),
            item.to(device, torch.int64),
            examples.context.to(device, torch.int64),
            None if dense is None else dense.to(device),
            examples.label.to(device, torch.float32),
        )


def open_examples(dataset: Dataset, part: Part) -> Examples:
    """All rows of one of the open users' parts.

    Raises
    ------
    DataError
        If there are none.
    """
    queries = open_queries(dataset, part)
    context = torch.from_numpy(np.ascontiguousarray(dataset.context_codes[dataset.rows(part)]))
    return Examples(queries, context, torch.from_numpy(dataset.label[dataset.rows(part)]).float())


def open_queries(dataset: Dataset, part: Part) -> Queries:
    """What is known of each of the rows of one of the open users' parts.

    Raises
    ------
    DataError
        If there are none.
    """
    rows = dataset.rows(part)
    if not len(rows):
        raise DataError(
            f"{dataset.path}: no row in part {part.name.lower()!r}, so there is nothing to train on",
            "prepare the data set with more open users (--division)",
        )
    return Queries(
        dataset.user[rows].astype(np.int64),
        dataset.time[rows],
        dataset.user_views[rows].astype(np.int64),
        dataset.user_clicks[rows].astype(np.int64),
        dataset.item[rows, None].astype(np.int64),
        dataset.item_views[rows, None],
        dataset.item_clicks[rows, None],
        dataset.open_views[rows],
        dataset.open_clicks[rows],
    )
