"""The published backbone with every weight trained: what averages whole models, such as FedAvg, works on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from fedpa.data.dataset import Dataset
from fedpa.draws import derive_seed
from fedpa.federation.parameters import Block, Layout, Parameter, Scope, Table
from fedpa.federation.rows import Batch, group_sizes
from fedpa.models.foundation import Foundation
from fedpa.models.mlp import MLP
from fedpa.models.pretrain import PretrainSettings, untrained
from fedpa.models.products import gather_rows, rows_times, split_times
from fedpa.settings import Settings

__all__ = ["WholeMLP", "WholeSettings"]


class WholeSettings(Settings):
    """Settings of methods that train the whole backbone.

    Attributes
    ----------
    on_foundation : bool
        Start at the foundation's weights; otherwise at random, as published.
    embedding, hidden : int, sequence of int
        Shape of the backbone, where it does not start at a foundation.
    """

    on_foundation: bool = False
    embedding: Annotated[int, Field(ge=1)] = 8
    hidden: tuple[Annotated[int, Field(ge=1)], ...] = Field((32, 8), min_length=1)


class WholeMLP:
    """The backbone as a function of its parameters, embeddings included.

    Parameters
    ----------
    settings : WholeSettings
    rule : callable
        From a parameter's name (``tables.user``, ``tables.item``, ``tables.context``, ``layers.0.weight``,
        ``head.bias``, ...) to its scope.
    foundation : Foundation or None
    dataset : Dataset
    seed : int
        Of the random start.
    prefix : str
        Before every name, so that one model may hold two of these.
    """

    def __init__(
        self,
        settings: WholeSettings,
        rule: Callable[[str], Scope],
        foundation: Foundation | None,
        dataset: Dataset,
        *,
        seed: int,
        device: torch.device,
        prefix: str = "",
    ) -> None:
        self.prefix = prefix
        if foundation is None:
            shape = PretrainSettings(embedding=settings.embedding, hidden=settings.hidden)
            mlp = untrained(dataset, shape, derive_seed(seed, "start/whole"))
        else:
            mlp = foundation.model
        self._dtype, self._device = settings.torch_dtype, device
        self.depth = len(mlp.layers)
        catalogue = dataset.item_codes if foundation is None else foundation.inputs.item_codes(dataset)
        user_codes, item_codes = (torch.from_numpy(c).long() for c in (dataset.user_codes, catalogue))
        self._dense = mlp.dense
        offsets = {side: mlp.get_buffer(f"offsets_{side}") for side in ("user", "item", "context")}
        self.tables = [
            self._table(mlp, "user", lambda users: user_codes[users.cpu()] + offsets["user"], per_user=True),
            self._table(mlp, "item", lambda items, _: item_codes[items.cpu()] + offsets["item"]),
        ]
        if mlp.features["context"]:
            self.tables.append(self._table(mlp, "context", lambda _, context: context.cpu() + offsets["context"]))
        self.blocks = [
            Block(self._name(name), (Parameter(self._name(name), tuple(value.shape), self._start(value)),))
            for name, value in mlp.named_parameters()
            if not name.startswith("tables.")
        ]
        self.layout = Layout(self.blocks, rule, group_sizes(dataset), self.tables)

    def forward(self, blocks: Mapping[str, Tensor], batch: Batch) -> tuple[Tensor, list[Tensor]]:
        """Click logits [users, rows]; no gates."""
        x: Tensor
        user = blocks[self._name("tables.user")].flatten(1)[:, None, :]
        parts = [
            gather_rows(blocks[table.name], batch.slots[table.name]).flatten(-2)
            for table in self.tables
            if table.per == "row"
        ]
        if self._dense:
            parts.append(batch.evidence)
        x = torch.cat(parts, -1)
        for layer in range(self.depth):
            weight, bias = (blocks[self._name(f"layers.{layer}.{kind}")] for kind in ("weight", "bias"))
            product = split_times(user, x, weight) if layer == 0 else rows_times(x, weight)
            x = torch.relu(product + bias[:, None, :])
        head, bias = (blocks[self._name(f"head.{kind}")] for kind in ("weight", "bias"))
        logits = rows_times(x, head) + bias[:, None, :]
        if self._dense:
            logits = logits + rows_times(batch.evidence, blocks[self._name("direct.weight")])
        return logits.squeeze(-1), []

    def _name(self, name: str) -> str:
        return self.prefix + name

    def _table(self, mlp: MLP, side: str, ids: Callable[..., Tensor], *, per_user: bool = False) -> Table:
        value = mlp.tables[side].get_parameter("weight")
        return Table(
            self._name(f"tables.{side}"),
            value.shape[0],
            value.shape[1],
            self._start(value),
            lambda *given: ids(*given).to(given[0].device),
            "user" if per_user else "row",
        )

    def _start(self, value: Tensor) -> Tensor:
        return value.detach().to(self._device, self._dtype)
