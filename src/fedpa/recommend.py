"""Rank the catalogue for users of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedpa.data.dataset import Dataset, ItemCounts, Part
from fedpa.data.past import Queries
from fedpa.draws import uniform
from fedpa.errors import ConfigError
from fedpa.evaluation.ranking import TopK
from fedpa.federation.parameters import Table
from fedpa.federation.rows import Batch
from fedpa.federation.rule import AdaptedModel, scored
from fedpa.federation.server import Server
from fedpa.federation.shard import Shard
from fedpa.models.inputs import Inputs

__all__ = ["CatalogueScorer", "Recommendation", "Recommender", "catalogue_batch"]

Ints = npt.NDArray[np.int64]
_BLOCK_ROWS = 1 << 17
_SNAPSHOTS = 8


@dataclass(frozen=True)
class Recommendation:
    """The best unseen items of one user.

    Attributes
    ----------
    user : int or str
    items : list
        The data set's own ids, best first.
    scores : list of float
        Click probabilities.
    gates : dict of str to list of float
        Mean weight over the layers of every branch, per item; empty for methods without gates.
    notes : list of str
        Where the user fell back to less than a full adapter.
    """

    user: int | str
    items: list[Any]
    scores: list[float]
    gates: dict[str, list[float]]
    notes: list[str]

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return self.__dict__.copy()


def catalogue_batch(
    tables: Mapping[str, Table], numbers: Ints, items: Tensor, context: Tensor, dense: Tensor | None = None
) -> Batch:
    """Rows for blocks of `Shard.catalogue`, where the id of a table's row is its slot."""
    slots = {name: table.ids(items, context) for name, table in tables.items()}
    return Batch(torch.from_numpy(numbers), items, context, slots, dense)


class CatalogueScorer:
    """Scores the whole catalogue for users of a run's rows, as it was known at those rows' times.

    Parameters
    ----------
    dataset : Dataset
    model : AdaptedModel
    shard : Shard
    state : sequence of Tensor
        The server's.
    inputs : Inputs
        The foundation's.
    """

    def __init__(
        self, dataset: Dataset, model: AdaptedModel, shard: Shard, state: Sequence[Tensor], inputs: Inputs
    ) -> None:
        self.dataset, self.model, self.shard, self.state, self.inputs = dataset, model, shard, state, inputs

    def __call__(self, positions: Ints) -> npt.NDArray[np.floating]:
        """Logits [n, items] for the users of some rows, given by ascending position [n]."""
        rows = self.shard.rows.candidates(self.dataset, positions)
        rows = self.inputs.shard_rows(self.dataset, rows, self.dataset.n_items)
        users = self.shard.rows.user[positions]
        numbers = self.shard.rows.users[users]
        weights = self.shard.weights_of(users, self.state)
        with torch.inference_mode():
            blocks, tables = self.shard.assembly.catalogue(weights, users, numbers, self.state)
            shape = (len(positions), self.dataset.n_items)
            context = rows.context.view(*shape, rows.context.shape[1])
            dense = None if rows.dense is None else rows.dense.unflatten(0, shape)
            batch = catalogue_batch(tables, numbers, rows.items.view(shape), context, dense)
            found: npt.NDArray[np.floating] = scored(self.model.forward(blocks, batch)[0]).cpu().numpy()
        return found


class Recommender:
    """Scores the whole catalogue for one user after another.

    Parameters
    ----------
    dataset : Dataset
    model : AdaptedModel
    shard : Shard
        Of the run's private users, to assemble their parameters.
    server : Server
    inputs : Inputs
        The foundation's.
    """

    def __init__(self, dataset: Dataset, model: AdaptedModel, shard: Shard, server: Server, inputs: Inputs) -> None:
        self.dataset, self.model, self.shard, self.server, self.inputs = dataset, model, shard, server, inputs
        self._items = torch.arange(dataset.n_items)[None]
        self._now = int(dataset.time.max()) + 1
        self._counts = shard.rows.item_counts(dataset, np.array([self._now]))
        self._item_context = torch.from_numpy(dataset.encode_catalogue(self._counts)[0].astype(np.int64))
        drawn = (
            dataset.manifest["settings"].get("split") == "leave-one-out"
        )  # its rows without a click were never shown
        self._shown = dataset.label == 1 if drawn else np.ones(dataset.n_rows, np.bool_)
        self._local = {int(user): local for local, user in enumerate(shard.rows.users)}
        self._ids = dataset.item_ids
        chosen = getattr(shard.settings, "groups", None)
        own = ["user"] if getattr(shard.settings, "user_lora", True) else []
        self._branches = ["foundation", *own, *(dataset.group_sizes if chosen is None else chosen)]

    def recommend(self, user: int | str, k: int = 10) -> Recommendation:
        """The k best items that the user has no row of, at the end of the data.

        Row features, where the data set has any, are those of the user's latest row; unknown for a user without rows.

        Raises
        ------
        DataError
            If the user is not in the data set.
        ConfigError
            If k is not positive.
        """
        if k < 1:
            raise ConfigError(f"k must be at least 1, found {k}")
        number = self.dataset.user_index(user)
        local = self._local.get(number)
        weights, notes = self._weights(number, local)
        begin, end = self.dataset.user_starts[number : number + 2]
        with torch.inference_mode():
            own = self._own(number)
            context = self._context(self._item_context, self._user_context(number, own))
            users = None if local is None else np.array([local])
            blocks, tables = self.shard.assembly.catalogue(weights, users, np.array([number]), self.server.state)
            queries = _queries(np.array([number]), np.array([self._now]), *own, self._counts)
            dense = self._dense(queries)
            batch = catalogue_batch(tables, np.array([number]), self._items, context[None], dense)
            logits, gates = self.model.forward(blocks, batch)
            scores = torch.sigmoid(scored(logits)[0])
            open_scores = scores.clone()
            seen = self.dataset.item[begin:end][self._shown[begin:end]]
            open_scores[torch.from_numpy(seen.astype(np.int64))] = -1.0
            best = torch.topk(open_scores, min(k, len(scores)))
            chosen = best.indices[best.values >= 0]
            explained = self._explain(gates, chosen)
        return Recommendation(
            user,
            [self._ids[item] for item in chosen.tolist()],
            scores[chosen].tolist(),
            explained,
            notes,
        )

    def ranking(self, part: str, k: int, most: int | None = None) -> dict[str, Any]:
        """HR, NDCG and Recall at k and coverage over the whole catalogue, for the clicks of one part.

        Items of the user's earlier parts are left out. Item statistics are those of the latest of eight instants
        before the user's first row of the part; the user's counters and row features are those of that row.

        Parameters
        ----------
        part : str
        k : int
        most : int, optional
            Rank for this many users only, chosen by a draw; the report says so.
        """
        rows, data = self.shard.rows, self.dataset
        code = Part[part.upper()]
        here = rows.part == code
        clicked = here & (rows.labels.numpy() > 0)
        users = np.unique(rows.user[clicked])
        total = len(users)
        if most is not None and most < total:
            draw = uniform(0, "ranking", (), rows.keys[users])
            users = np.sort(users[np.argsort(draw, kind="stable")[:most]])
        first = np.searchsorted(rows.user[here], users)
        first_row = rows.row[here][first]
        instants = np.quantile(data.time[first_row], np.arange(_SNAPSHOTS) / _SNAPSHOTS, method="lower")
        when = np.searchsorted(instants, data.time[first_row], side="right") - 1
        counts = rows.item_counts(data, instants.astype(np.int64))
        snapshots = torch.from_numpy(data.encode_catalogue(counts).astype(np.int64))
        judged = np.flatnonzero(here)[first]
        own = torch.from_numpy(rows.context.numpy()[judged, data.n_item_context :])
        times, views, clicks = rows.time[judged], rows.own_views[judged], rows.own_clicks[judged]
        counted = TopK(k, data.n_items)
        per_block = max(1, _BLOCK_ROWS // data.n_items)
        for begin in range(0, len(users), per_block):
            chosen = slice(begin, begin + per_block)
            block = users[chosen]
            known = ItemCounts(*(each[when[chosen]] for each in counts))
            queries = _queries(rows.users[block], times[chosen], views[chosen], clicks[chosen], known)
            scores = self._block_scores(block, snapshots[when[chosen]], own[chosen], queries)
            member = np.isin(rows.user, block)
            seen = member & (rows.part < code) & self._shown[rows.row]
            place = np.searchsorted(block, rows.user)
            hit = member & clicked
            items = rows.items.numpy()
            counted.add(scores.numpy(), (place[hit], items[hit]), (place[seen], items[seen]))
        return counted.report() | {"catalogue": data.n_items, "users_with_clicks": total}

    def _block_scores(self, block: Ints, item_context: Tensor, own: Tensor, queries: Queries) -> Tensor:
        size = len(block)
        weights = self.shard.weights_of(block, self.server.state)
        with torch.inference_mode():
            context = torch.cat([item_context, own[:, None, :].expand(-1, self.dataset.n_items, -1)], -1)
            numbers = self.shard.rows.users[block]
            blocks, tables = self.shard.assembly.catalogue(weights, block, numbers, self.server.state)
            dense = self._dense(queries)
            batch = catalogue_batch(tables, numbers, self._items.expand(size, -1), context, dense)
            return scored(self.model.forward(blocks, batch)[0])

    def _context(self, items: Tensor, user: Tensor) -> Tensor:
        return torch.cat([items, user.expand(len(items), -1)], -1)

    def _dense(self, queries: Queries) -> Tensor | None:
        found = self.inputs.read(self.dataset, queries)
        return found if found is None or not found.is_floating_point() else found.to(self.shard.dtype)

    def _own(self, number: int) -> tuple[Ints, Ints]:
        """All own rows but the randomly exposed ones, and clicks among them: what the device knows today."""
        past = self.dataset.past
        begin, end = past.starts[number : number + 2]
        return np.array([end - begin]), np.array([past.click[begin:end].sum()])

    def _user_context(self, number: int, own: tuple[Ints, Ints]) -> Tensor:
        codes = self.dataset.encode_user(*own, self._counts.open_views, self._counts.open_clicks)[0]
        return torch.from_numpy(np.concatenate([codes, self.dataset.row_codes_now(number)]).astype(np.int64))

    def _weights(self, number: int, local: int | None) -> tuple[Tensor, list[str]]:
        notes = []
        if local is None:
            notes.append("not a private user of this run: shared and group parameters with a zero personal adapter")
            weights = self.shard.weights_of_newcomer(number, self.dataset, self.server.state)
        else:
            weights = self.shard.weights_of(np.array([local]), self.server.state)
            if self.shard.store.size and not np.any(self.shard.store.read(np.array([local]))):
                notes.append("never took part (or was forgotten): zero personal adapter")
        for key, value in self.shard.assembly.groups_of(number, self.dataset).items():
            if value < 0:
                notes.append(f"unknown value of {key}: the foundation's own branch")
        return weights, notes

    def _explain(self, gates: list[Tensor], chosen: Tensor) -> dict[str, list[float]]:
        if not gates:
            return {}
        mean = torch.stack([gate[0, chosen] for gate in gates]).mean(0)
        share = mean / mean.sum(-1, keepdim=True)
        return {name: share[:, i].tolist() for i, name in enumerate(self._branches[: share.shape[1]])}


def _queries(users: Ints, times: Ints, views: Ints, clicks: Ints, counts: ItemCounts) -> Queries:
    """The whole catalogue as candidates of some users' moments."""
    items = np.broadcast_to(np.arange(counts.views.shape[1]), (len(users), counts.views.shape[1]))
    return Queries(users, times, views, clicks, items, *counts)
