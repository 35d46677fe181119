"""GPFedRec: a graph of users guides what each of them receives.

Zhang et al., *GPFedRec: Graph-Guided Personalization for Federated Recommendation*, KDD 2024, algorithm 1: devices
keep a user vector and a perceptron, and upload item embeddings q_u. The server sees every device's embeddings,
compares users by the cosine of theirs, and takes the mean r_u over each user's nearest ones (one layer of message
passing). A user receives the mean of all r_u, from which it starts, and its own r_u, to which a term of the local loss,
``closeness`` times the mean squared difference, holds its embeddings. A device scores with its own embeddings.

Departures: the nearest users are the most similar ones, the user itself among them (the published code sorts by cosine
*distance*, so that the farthest come first), and number ``neighbours`` (by default the published code takes all beyond
the mean); the term is a mean over the rows of a batch instead of the whole table, so that rows a device never touched
need not be kept on it; one rate serves user vector and perceptron, where the published code has 79 times the
perceptron's for the user vector; a user who took no part in the last round is held to the mean; rows that a device
never trained are scored from the server's newest mean. Users count once in the mean, whatever ``weighting`` and
``table_mean`` say.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, cast

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor

from fedpa.errors import ConfigError
from fedpa.federation.parameters import PERSONAL, Layout, Parameter, Scope, Table
from fedpa.federation.rule import AdaptedModel, LocalStep
from fedpa.federation.server import Server, TableRows, Upload
from fedpa.methods.item_ids import ItemIdMethod, item_presets
from fedpa.methods.method import register
from fedpa.models.items import ItemIdModel, ItemSettings
from fedpa.models.products import rows_times, split_times

__all__ = ["GPFedRec", "GPFedRecSettings", "GraphServer", "nearest"]

_MOST = 20_000
_BLOCK = 512


class GPFedRecSettings(ItemSettings):
    """Settings of GPFedRec.

    Attributes
    ----------
    hidden : sequence of int
        Widths of the perceptron's layers.
    neighbours : int
        How many nearest users are averaged, the user itself among them.
    closeness : float
        Weight of the term that holds embeddings to what was received.
    """

    hidden: tuple[Annotated[int, Field(ge=1)], ...] = Field((16, 8), min_length=1)
    neighbours: Annotated[int, Field(ge=1)] = 10
    closeness: Annotated[float, Field(ge=0)] = 0.1


class _Perceptron(ItemIdModel):
    """A perceptron over the user's vector and the item's embedding."""

    def parts(self) -> tuple[list[Table], list[Parameter]]:
        """Item embeddings; a user vector, layers and an output, which starts at zero above a foundation."""
        width, hidden = self.settings.width, cast(GPFedRecSettings, self.settings).hidden
        parameters = [self.user_vector("user", width)]
        for layer, (into, out) in enumerate(zip((2 * width, *hidden), hidden, strict=False)):
            parameters += self.linear(f"layers.{layer}", into, out)
        parameters += self.linear("head", hidden[-1], 1, zero=self.settings.on_foundation)
        return [self.item_table("items")], parameters

    def logits(self, blocks: Mapping[str, Tensor], rows: Mapping[str, Tensor]) -> Tensor:
        """The perceptron's output [users, rows]."""
        x = rows["items"]
        for layer in range(len(cast(GPFedRecSettings, self.settings).hidden)):
            weight, bias = blocks[f"layers.{layer}.weight"], blocks[f"layers.{layer}.bias"][:, None, :]
            x = torch.relu((split_times(blocks["user"], x, weight) if layer == 0 else rows_times(x, weight)) + bias)
        return (rows_times(x, blocks["head.weight"]) + blocks["head.bias"][:, None, :]).squeeze(-1)


@register
class GPFedRec(ItemIdMethod):
    """Item embeddings averaged over the nearest users of a graph that the server builds."""

    name = "gpfedrec"
    settings_type = GPFedRecSettings
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = item_presets(optimizer="sgd", lr=0.1, item_rate=0.2)
    compared: ClassVar[Mapping[str, str]] = {"default": "GPFedRec", "foundation": "GPFedRec + foundation"}
    model_type = _Perceptron

    def scope(self, name: str) -> Scope:
        """The server sees each device's item embeddings, and the device keeps its own."""
        return Scope("shared", keeps=True, sees="rows") if name == "items" else PERSONAL

    def server(self, layout: Layout) -> Server:
        """One that builds the graph."""
        return GraphServer(layout, self.settings.torch_dtype, cast(GPFedRecSettings, self.settings))

    def local_loss(self, model: AdaptedModel, step: LocalStep) -> Tensor:
        """Log-loss, plus the distance of the batch's embeddings to what the user received: at first, the start."""
        perceptron = cast(_Perceptron, getattr(model, "model", model))
        received = step.start["items"] + step.received["items"] if step.received else step.start["items"]
        here, there = (perceptron.item_rows(rows, step.batch)["items"] for rows in (step.blocks, {"items": received}))
        strength = cast(GPFedRecSettings, self.settings).closeness
        distance = ((here - there).square().mean(-1) * step.weights).sum(1)
        return super().local_loss(model, step) + strength * distance

    needs_start = True


class GraphServer(Server):
    """Averages a table over each user's nearest users, and moves by the mean of those averages.

    Parameters
    ----------
    layout : Layout
        With one table, named ``items``.
    dtype : torch.dtype
    settings : GPFedRecSettings
    """

    def __init__(self, layout: Layout, dtype: torch.dtype, settings: GPFedRecSettings) -> None:
        super().__init__(layout, dtype, settings)
        if settings.aggregation != "mean":
            raise ConfigError(
                f"method gpfedrec: aggregates over a graph of users, not by {settings.aggregation}",
                "take --set aggregation=mean",
            )
        self._neighbours = settings.neighbours

    def step(self, upload: Upload) -> None:
        """Build the graph from what was seen, and what each user receives next.

        Raises
        ------
        ConfigError
            If more users took part than a graph of all pairs can hold.
        """
        if not upload.seen:
            return
        values = torch.cat([piece.values for piece in upload.seen])
        users, ids = (np.concatenate([getattr(piece, name) for piece in upload.seen]) for name in ("users", "ids"))
        seen = TableRows("items", users, ids, values).sorted()
        names, owner = np.unique(seen.users, return_inverse=True)
        if len(names) > _MOST:
            raise ConfigError(
                f"method gpfedrec: {len(names):,} users took part, a graph of all pairs holds {_MOST:,} at most",
                f"lower the share of participants, for instance --set participation={_MOST / len(names) / 2:.2f}",
            )
        table = self.state[0].view(-1, values.shape[1]).double().numpy()
        change = seen.values.double().numpy()
        near = nearest(table, owner, seen.ids, change, len(names), min(self._neighbours, len(names)))
        chosen = np.bincount(near.reshape(-1), minlength=len(names)) / near.size
        change_of_mean = np.zeros_like(table)
        np.add.at(change_of_mean, seen.ids, change * chosen[owner][:, None])
        step = self._optimised(0, torch.from_numpy(change_of_mean).view(1, -1), torch.ones(1, 1, dtype=torch.bool))
        self.state[0] = (self.state[0].double() + step).to(self.dtype)
        state = self.state[0].view(table.shape).double().numpy()
        nearest_mean = table[seen.ids] + _mean_of(near, owner, seen.ids, change, len(table))
        received = nearest_mean - state[seen.ids]
        self.downlink = (TableRows("items", seen.users, seen.ids, torch.from_numpy(received).to(self.dtype)),)


def nearest(
    table: npt.NDArray[np.float64],
    owner: npt.NDArray[np.integer],
    ids: npt.NDArray[np.integer],
    change: npt.NDArray[np.float64],
    users: int,
    neighbours: int,
) -> npt.NDArray[np.int64]:
    """Most similar users by the cosine of whole tables, of which each user changed a few rows.

    Parameters
    ----------
    table : array [rows, width]
        What all started from.
    owner, ids : int array [entries]
        User, from 0, and row of each change, sorted by user then row.
    change : array [entries, width]
    users, neighbours : int

    Returns
    -------
    int64 array [users, neighbours]
        Best first; a user is its own nearest unless another has the very same table.
    """
    total = float((table * table).sum())
    towards = np.bincount(owner, (table[ids] * change).sum(1), minlength=users)
    own = np.bincount(owner, (change * change).sum(1), minlength=users)
    norm = np.sqrt(np.maximum(total + 2 * towards + own, 1e-30))
    products = np.zeros((users, users), np.float32)
    order = np.argsort(ids, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(ids[order])) + 1):
        who = owner[rows]
        products[np.ix_(who, who)] += (change[rows] @ change[rows].T).astype(np.float32)
    found = np.empty((users, neighbours), np.int64)
    for begin in range(0, users, _BLOCK):
        block = slice(begin, begin + _BLOCK)
        cosine = (products[block] + (total + towards[block][:, None] + towards)) / (norm[block][:, None] * norm)
        found[block] = torch.topk(torch.from_numpy(cosine), neighbours).indices.numpy()
    return found


def _mean_of(
    near: npt.NDArray[np.int64],
    owner: npt.NDArray[np.integer],
    ids: npt.NDArray[np.integer],
    change: npt.NDArray[np.float64],
    rows: int,
) -> npt.NDArray[np.float64]:
    """For every entry, the mean over its user's nearest ones of their change in that row [entries, width]."""
    key = owner.astype(np.int64) * rows + ids
    total = np.zeros_like(change)
    for place in range(near.shape[1]):
        wanted = near[owner, place] * rows + ids
        at = np.minimum(np.searchsorted(key, wanted), len(key) - 1)
        total += np.where((key[at] == wanted)[:, None], change[at], 0.0)
    mean: npt.NDArray[np.float64] = total / near.shape[1]
    return mean
