"""What a wrapped module is called with: rows of many users, one below the other."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedpa.data.dataset import Dataset
from fedpa.data.past import Queries
from fedpa.errors import DataError
from fedpa.federation.rows import Batch, ShardRows
from fedpa.models.inputs import Inputs

__all__ = ["History", "PastInputs", "RowSource", "Rows", "first_rows"]

Ints = npt.NDArray[np.int64]
_CHECKED = 12


@dataclass(frozen=True)
class History:
    """The latest own rows that each row may know of, the latest last.

    Attributes
    ----------
    items : Tensor
        Item numbers [rows, length], int64.
    clicks : Tensor
        Whether they were clicked [rows, length], bool.
    gaps : Tensor
        How long before the row they were, in the source's unit of time [rows, length], int64.
    mask : Tensor
        Which of them there are [rows, length], bool; the others come first, with zeros elsewhere.
    """

    items: Tensor
    clicks: Tensor
    gaps: Tensor
    mask: Tensor

    def take(self, which: Tensor | slice) -> History:
        """That of some rows, by position."""
        return History(*(getattr(self, field.name)[which] for field in fields(self)))


@dataclass(frozen=True)
class Rows:
    """Rows of some users, each user's rows together.

    Numbers are those of the data set, so that a module may hold a table of its own by item or user, such as the tokens
    of every item's title, as a buffer. A field that it does not need it leaves alone.

    Attributes
    ----------
    users, items : Tensor
        User and item numbers [rows], int64.
    user_codes, item_codes, context : Tensor
        Feature codes of the user, the item and the row [rows, features], int64; see `Dataset.user_features`,
        `item_features` and `context_features`.
    history : History or None
        The user's past, where `wrap` was told its length.
    """

    users: Tensor
    items: Tensor
    user_codes: Tensor
    item_codes: Tensor
    context: Tensor
    history: History | None = None

    def __len__(self) -> int:
        return len(self.items)

    def take(self, which: Tensor | slice) -> Rows:
        """Some of the rows, by position."""
        tensors = {f.name: getattr(self, f.name)[which] for f in fields(self) if f.name != "history"}
        return replace(self, **tensors, history=None if self.history is None else self.history.take(which))


class PastInputs(Inputs):
    """Hands on, in the place of evidence, how far into its user's past a row may look: own rows and its time."""

    def read(self, dataset: Dataset, queries: Queries) -> Tensor | None:
        """Number of known own rows and time of every candidate [queries, candidates, 2], int64."""
        known = np.stack([queries.views, queries.time], -1).astype(np.int64)
        return torch.from_numpy(known)[:, None].expand(-1, queries.items.shape[1], -1)

    def shard_rows(self, dataset: Dataset, rows: ShardRows, each: int = 1) -> ShardRows:
        """A shard's rows with the same of each of them."""
        known = np.stack([rows.own_views, rows.time], -1).astype(np.int64)
        return replace(rows, dense=torch.from_numpy(known).to(rows.items.device))


class RowSource:
    """Makes `Rows` of what the engine computes with.

    Parameters
    ----------
    dataset : Dataset
    device : torch.device
    length : int
        Of the history; 0 for none.
    """

    def __init__(self, dataset: Dataset, device: torch.device, length: int = 0) -> None:
        self._user_codes = torch.from_numpy(dataset.user_codes.astype(np.int64)).to(device)
        self._item_codes = torch.from_numpy(dataset.item_codes.astype(np.int64)).to(device)
        self._past = dataset.past if length else None
        self._length = length

    def of_batch(self, batch: Batch) -> Rows:
        """Rows of the users of a batch, user after user."""
        users = batch.users.repeat_interleave(batch.items.shape[1])
        known = None if batch.dense is None else batch.dense.reshape(-1, 2).cpu().numpy()
        return self._rows(users, batch.items.flatten(), batch.context.flatten(0, 1), known)

    def of_shard(self, rows: ShardRows, where: slice | Ints) -> Rows:
        """Some rows of a shard, by position."""
        users = torch.from_numpy(rows.users[rows.user[where]]).to(rows.items.device)
        known = np.stack([rows.own_views[where], rows.time[where]], -1).astype(np.int64)
        return self._rows(users, rows.items[where], rows.context[where], known)

    def _rows(self, users: Tensor, items: Tensor, context: Tensor, known: Ints | None) -> Rows:
        codes = self._user_codes[users], self._item_codes[items]
        return Rows(users, items, *codes, context, self._history(users, known))

    def _history(self, users: Tensor, known: Ints | None) -> History | None:
        past = self._past
        if past is None or known is None:
            return None
        places, real = past.recent(users.cpu().numpy(), known[:, 0], self._length)
        if not len(past.item):
            return History(*(torch.zeros(places.shape, dtype=kind, device=users.device) for kind in _KINDS))
        found = past.item[places] * real, past.click[places] & real, (known[:, 1:] - past.time[places]) * real, real
        return History(*(torch.from_numpy(each).to(users.device) for each in found))


_KINDS = (torch.int64, torch.bool, torch.int64, torch.bool)


def first_rows(dataset: Dataset, device: torch.device, length: int = 0) -> Rows:
    """A dozen rows of private users, spread over all, for a check.

    Raises
    ------
    DataError
        If the data set has no rows of private users.
    """
    rows = ShardRows.of(dataset, dtype=torch.float32, device=device)
    if not len(rows.row):
        raise DataError(f"{dataset.path}: has no rows of private users to check a module on")
    where = np.linspace(0, len(rows.row) - 1, _CHECKED).astype(np.int64)
    return RowSource(dataset, device, length).of_shard(rows, where)
