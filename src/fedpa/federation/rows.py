"""The rows of a shard's users, user by user, training rows first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedpa.data.dataset import COLD, PRIVATE, Dataset, ItemCounts, Part
from fedpa.data.past import Queries
from fedpa.draws import user_keys
from fedpa.errors import FedpaError
from fedpa.federation.tally import Tally

__all__ = ["Batch", "ShardRows", "group_sizes", "group_values"]

Ints = npt.NDArray[np.int64]
_PARTS = ("train", "val", "test", "unbiased")


def group_values(dataset: Dataset) -> dict[str, Ints]:
    """Per group key the value of every user as a row of the server's table [users]; -1 where unknown."""
    unknown = 1 if dataset.manifest["settings"]["features"] == "causal" else 0
    return {key: codes.astype(np.int64) - unknown for key, codes in dataset.groups.items()}


def group_sizes(dataset: Dataset) -> dict[str, int]:
    """Per group key the number of known values."""
    unknown = 1 if dataset.manifest["settings"]["features"] == "causal" else 0
    return {key: size - unknown for key, size in dataset.group_sizes.items()}


def _local(users: Ints, dataset: Dataset) -> Ints:
    """Position of every user among `users` [all users], -1 for the others."""
    local = np.full(dataset.n_users, -1, np.int64)
    local[users] = np.arange(len(users))
    return local


@dataclass(frozen=True)
class Batch:
    """Rows that go through a model together.

    Attributes
    ----------
    users : Tensor
        User numbers of the data set [users], int64.
    items : Tensor
        Item numbers [users, rows], int64.
    context : Tensor
        Codes of the row's own features [users, rows, context features], int64.
    slots : dict
        Per table the places of the rows' ids among the user's touched rows [users, rows, ids], int64.
    dense : Tensor or None
        What the foundation's reader of the past says of each row [users, rows, width].
    real : Tensor or None
        How many rows of each user come before the copies of its last one that fill it up [users]; None: all.
    """

    users: Tensor
    items: Tensor
    context: Tensor
    slots: Mapping[str, Tensor] = field(default_factory=dict)
    dense: Tensor | None = None
    real: Tensor | None = None

    @property
    def evidence(self) -> Tensor:
        """`dense` for a model that reads it.

        Raises
        ------
        FedpaError
            If the rows were made without the foundation's reader.
        """
        if self.dense is None:
            raise FedpaError(
                "the foundation reads users' pasts, but these rows say nothing of them",
                "make them with foundation.inputs.shard_rows(dataset, rows)",
            )
        return self.dense


@dataclass
class ShardRows:
    """Rows of some private users, sorted by user; within a user training rows first, then by part and time.

    Attributes
    ----------
    users : ndarray
        User numbers of the data set [users], ascending; a *local* number is a position in it.
    keys : ndarray
        64-bit keys of the users [users].
    groups : dict
        Per group key the row of each user's value in the server's table [users], -1 where unknown.
    begin, train, total : ndarray
        First row, number of training rows and number of all rows of each user [users].
    row : ndarray
        The data set's row behind each row [rows].
    user : ndarray
        Local user of each row [rows].
    part : ndarray
        Part of each row [rows], as in `fedpa.data.dataset.Part`.
    time : ndarray
        Time of each row [rows].
    items, context, labels : Tensor
        [rows], [rows, context features], [rows] on the shard's device.
    own_views, own_clicks : ndarray
        The user's own rows and clicks that each row may know of [rows].
    item_views, item_clicks, open_views, open_clicks : ndarray
        Open users' rows and clicks strictly before each row, of its item and of all items [rows].
    dense : Tensor or None
        What the foundation's reader of the past says of each row [rows, width]; see `fedpa.models.inputs`.
    every_label : Tensor or None
        Labels that are trained on beside each other [rows, labels], the first as in `labels`; None where that is all.
    tally : Tally or None
        The item counts of private users that the counts of all rows contain.
    """

    users: Ints
    keys: npt.NDArray[np.uint64]
    groups: dict[str, Tensor]
    begin: Ints
    train: Ints
    total: Ints
    row: Ints
    user: Ints
    part: npt.NDArray[np.uint8]
    time: Ints
    items: Tensor
    context: Tensor
    labels: Tensor
    own_views: Ints
    own_clicks: Ints
    item_views: npt.NDArray[np.integer]
    item_clicks: npt.NDArray[np.integer]
    open_views: npt.NDArray[np.integer]
    open_clicks: npt.NDArray[np.integer]
    dense: Tensor | None = None
    every_label: Tensor | None = None
    tally: Tally | None = None

    @classmethod
    def of(cls, dataset: Dataset, users: Ints | None = None, *, dtype: torch.dtype, device: torch.device) -> ShardRows:
        """Take the rows of `users` (default: all private users) out of a data set."""
        if users is None:
            users = np.flatnonzero(dataset.side == PRIVATE)
        row = dataset.rows(Part.TRAIN, Part.VAL, Part.TEST, Part.UNBIASED)
        owner = _local(users, dataset)[dataset.user[row]]
        row, owner = row[owner >= 0], owner[owner >= 0]
        views = dataset.user_views[row].astype(np.int64)
        clicks = dataset.user_clicks[row].astype(np.int64)
        return cls._sorted(
            dataset, users, row, owner, dataset.part[row], dataset.context_codes[row], views, clicks, dtype, device
        )

    @classmethod
    def cold(cls, dataset: Dataset, support: int, *, dtype: torch.dtype, device: torch.device) -> ShardRows:
        """Cold users with their first `support` rows to train on and their later rows to be scored.

        The later rows are the same whatever `support` is, and know of no own row but the support.
        """
        users = np.flatnonzero(dataset.side == COLD)
        row = dataset.rows(Part.SUPPORT, Part.COLD_TEST)
        owner = _local(users, dataset)[dataset.user[row]]
        part = dataset.part[row]
        nth = np.arange(len(row)) - np.searchsorted(owner, owner)
        keep = (part == Part.COLD_TEST) | (nth < support)
        given = (part == Part.SUPPORT) & keep
        seen = np.bincount(owner[given], minlength=len(users))
        liked = np.bincount(owner[given & (dataset.label[row] == 1)], minlength=len(users))
        row, owner, part, shown = row[keep], owner[keep], part[keep], part[keep] == Part.COLD_TEST
        views = dataset.user_views[row].astype(np.int64)
        clicks = dataset.user_clicks[row].astype(np.int64)
        views[shown] = seen[owner[shown]]
        clicks[shown] = liked[owner[shown]]
        context = dataset.context_codes[row].astype(np.int64)
        own = dataset.encode_user(views, clicks, dataset.open_views[row], dataset.open_clicks[row])
        first = dataset.n_item_context
        context[:, first : first + own.shape[1]] = own
        part = np.where(shown, part, np.uint8(Part.TRAIN))
        return cls._sorted(dataset, users, row, owner, part, context, views, clicks, dtype, device)

    @classmethod
    def _sorted(
        cls,
        dataset: Dataset,
        users: Ints,
        row: Ints,
        owner: Ints,
        part: npt.NDArray[np.uint8],
        context: npt.NDArray[np.integer],
        views: Ints,
        clicks: Ints,
        dtype: torch.dtype,
        device: torch.device,
    ) -> ShardRows:
        order = np.lexsort((part, owner))
        row, owner, part = row[order], owner[order], part[order]
        return cls(
            users=users,
            keys=user_keys(dataset.user_ids.gather(users)),
            groups={key: torch.from_numpy(codes[users]).to(device) for key, codes in group_values(dataset).items()},
            begin=np.searchsorted(owner, np.arange(len(users))),
            train=np.bincount(owner[part == Part.TRAIN], minlength=len(users)),
            total=np.bincount(owner, minlength=len(users)),
            row=row,
            user=owner,
            part=part,
            time=dataset.time[row],
            items=torch.from_numpy(dataset.item[row].astype(np.int64)).to(device),
            context=torch.from_numpy(context[order].astype(np.int64)).to(device),
            labels=torch.from_numpy(dataset.label[row]).to(device, dtype),
            own_views=views[order],
            own_clicks=clicks[order],
            item_views=dataset.item_views[row],
            item_clicks=dataset.item_clicks[row],
            open_views=dataset.open_views[row],
            open_clicks=dataset.open_clicks[row],
        )

    def batch(self, local: Ints, positions: Tensor) -> Batch:
        """The model's input for some users' rows at `positions` [users, rows]."""
        return Batch(
            torch.from_numpy(self.users[local]).to(self.items.device),
            self.items[positions],
            self.context[positions],
            dense=None if self.dense is None else self.dense[positions],
        )

    def queries(self, each: int = 1) -> Queries:
        """What is known of every row when it is scored, or of `each` consecutive rows as candidates of one moment."""
        owner = self.users[self.user[::each]]
        items = self.items.cpu().numpy().reshape(-1, each)
        counts = (self.item_views.reshape(-1, each), self.item_clicks.reshape(-1, each))
        own = self.own_views[::each], self.own_clicks[::each]
        return Queries(
            owner, self.time[::each], *own, items, *counts, self.open_views[::each], self.open_clicks[::each]
        )

    def item_counts(self, dataset: Dataset, times: Ints) -> ItemCounts:
        """Rows and clicks of the whole catalogue before some instants, as far as these rows know them."""
        counts = dataset.item_counts(times)
        return counts if self.tally is None else self.tally.added(counts, times)

    def counted(self, dataset: Dataset, tally: Tally) -> ShardRows:
        """The same rows, whose item counts are those of open and private users."""
        when, item = tally.at(self.time), self.items.cpu().numpy()
        known = replace(
            self,
            item_views=self.item_views + tally.views[when, item],
            item_clicks=self.item_clicks + tally.clicks[when, item],
            open_views=self.open_views + tally.views.sum(1)[when],
            open_clicks=self.open_clicks + tally.clicks.sum(1)[when],
            tally=tally,
        )
        return known._encoded(dataset)

    def online(self, dataset: Dataset) -> ShardRows:
        """The same rows, which know of all own rows strictly before them, whatever part those are in."""
        views, clicks = dataset.past.running(self.users[self.user], self.time)
        return replace(self, own_views=views, own_clicks=clicks)._encoded(dataset)

    def _encoded(self, dataset: Dataset) -> ShardRows:
        """The same rows with context codes of the counts that they hold."""
        if not self.context.shape[1]:
            return self
        opened = self.open_views, self.open_clicks
        item = dataset.encode_item(self.item_views, self.item_clicks, *opened)
        own = dataset.encode_user(self.own_views, self.own_clicks, *opened)
        codes = torch.from_numpy(np.concatenate([item, own], -1).astype(np.int64)).to(self.items.device)
        return replace(self, context=torch.cat([codes, self.context[:, codes.shape[1] :]], -1))

    def candidates(self, dataset: Dataset, positions: Ints) -> ShardRows:
        """The whole catalogue for the users of some rows, as it was known at those rows' times.

        Parameters
        ----------
        dataset : Dataset
        positions : ndarray
            Rows of this shard [n]; the user's own counters and row features are those of the row.

        Returns
        -------
        ShardRows
            [n x items] rows to be scored, item by item for each of `positions`; labels are zero.
        """
        n, items = len(positions), dataset.n_items
        counts = self.item_counts(dataset, self.time[positions])
        context = dataset.encode_catalogue(counts).astype(np.int64)
        own = self.context.cpu().numpy()[positions, dataset.n_item_context :]
        context = np.concatenate([context, np.repeat(own[:, None, :], items, 1)], -1)
        device = self.items.device
        return replace(
            self,
            begin=np.zeros_like(self.begin),
            train=np.zeros_like(self.train),
            total=np.zeros_like(self.total),
            row=np.full(n * items, -1),
            user=np.repeat(self.user[positions], items),
            part=np.repeat(self.part[positions], items),
            time=np.repeat(self.time[positions], items),
            items=torch.arange(items, device=device).repeat(n),
            context=torch.from_numpy(context.reshape(n * items, context.shape[-1])).to(device),
            labels=torch.zeros(n * items, dtype=self.labels.dtype, device=device),
            own_views=np.repeat(self.own_views[positions], items),
            own_clicks=np.repeat(self.own_clicks[positions], items),
            item_views=counts.views.reshape(-1),
            item_clicks=counts.clicks.reshape(-1),
            open_views=np.repeat(counts.open_views, items),
            open_clicks=np.repeat(counts.open_clicks, items),
            dense=None,
            every_label=None,
        )
