"""Which rows of its tables each user touches, and where they lie in the user's memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedpa.federation.parameters import Table
from fedpa.federation.rows import ShardRows

__all__ = ["TouchedRows"]

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class TouchedRows:
    """Rows of one table that the users of a shard touch, user by user, those of training rows first.

    Attributes
    ----------
    begin, trained, total : ndarray
        First entry of each user in `ids`, how many of its entries occur in its training rows, and how many there are
        [users].
    ids : ndarray
        Rows of the table [entries]; within a user ascending, first the trained ones, then the others.
    slots : Tensor or None
        For every row of the shard the places of its ids among its user's entries [rows, ids]; None for a table per
        user.
    pairs : ndarray
        First entry of each user among the trained entries of all users [users + 1]: the rows of the store on disk.
    """

    begin: Ints
    trained: Ints
    total: Ints
    ids: Ints
    slots: Tensor | None
    pairs: Ints

    @classmethod
    def of(cls, table: Table, rows: ShardRows) -> TouchedRows:
        """Collect what a shard's rows touch of a table."""
        users = len(rows.users)
        if table.per == "user":
            found = table.ids(torch.from_numpy(rows.users)).numpy().astype(np.int64)
            many = np.full(users, found.shape[1], np.int64)
            begin = np.arange(users) * found.shape[1]
            return cls(begin, many, many, found.reshape(-1), None, np.append(begin, users * found.shape[1]))
        ids = table.ids(rows.items.cpu(), rows.context.cpu()).numpy().astype(np.int64)
        key = (rows.user[:, None] * table.rows + ids).reshape(-1)
        within = np.arange(len(rows.row)) - rows.begin[rows.user]
        in_training = np.repeat(within < rows.train[rows.user], ids.shape[1])
        names, place = np.unique(key, return_inverse=True)
        place = place.reshape(-1)
        is_trained = np.bincount(place[in_training], minlength=len(names)) > 0
        owner = names // table.rows
        order = np.lexsort((names, ~is_trained, owner))
        total = np.bincount(owner, minlength=users)
        trained = np.bincount(owner[is_trained], minlength=users)
        begin = np.cumsum(total) - total
        slot = np.empty(len(names), np.int64)
        slot[order] = np.arange(len(names)) - begin[owner[order]]
        slots = torch.from_numpy(slot[place].reshape(ids.shape)).to(rows.items.device)
        return cls(begin, trained, total, names[order] % table.rows, slots, np.append(0, np.cumsum(trained)))

    def padded(self, users: Ints, *, training: bool) -> tuple[Ints, Ints]:
        """Entries of some users as a dense block, and how many of each user are real.

        Returns
        -------
        ids : ndarray
            [users, longest], at least one column; padding repeats row 0 of the table.
        count : ndarray
            [users].
        """
        count = self.trained[users] if training else self.total[users]
        longest = max(1, int(count.max(initial=0)))
        within = np.arange(longest)
        real = within < count[:, None]
        place = np.where(real, self.begin[users][:, None] + within, 0)
        ids: Ints = np.where(real, self.ids[place] if len(self.ids) else 0, 0)
        return ids, count

    def stored(self, users: Ints) -> Ints:
        """Rows in the store of the trained entries of some users, one after another."""
        count = self.pairs[users + 1] - self.pairs[users]
        first = np.repeat(self.pairs[users] - (np.cumsum(count) - count), count)
        found: Ints = first + np.arange(int(count.sum()))
        return found
