"""The published backbone with adapters: low-rank branches around every layer, mixed by gates, and a head.

Zhang et al., *Federated Adaptation for Foundation Model-based Recommendations*, IJCAI 2024, arXiv 2405.04840. A layer
with its branches and gate is `fedpa.models.branches` with M(x) = relu(W x + b); without gates it is Hu et al., *LoRA*,
ICLR 2022, eq. 3, with the branch beside the activation as in FedPA. Which adapters there are is a setting; who trains
them is the rule's affair, so that this one model serves every method that adapts a frozen foundation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import embedding, linear

from fedpa.data.dataset import Dataset
from fedpa.errors import ConfigError
from fedpa.federation.parameters import Block, Layout, Parameter, Scope, Table
from fedpa.federation.rows import Batch, group_sizes
from fedpa.models.branches import Branches
from fedpa.models.foundation import Foundation
from fedpa.models.products import gather_rows, rows_times, split_times
from fedpa.settings import Settings

__all__ = ["AdaptedMLP", "AdapterSettings", "adapter_inputs", "own_id"]


class AdapterSettings(Settings):
    """Settings of adapters around a foundation, beside those of every federated method.

    Attributes
    ----------
    rank, alpha : int, float
        LoRA rank r and scale alpha; the branch is multiplied by alpha / r.
    lora_init : {"random", "zero"}
        Start of A; B always starts at zero. ``zero`` is the published start, which never trains.
    gate_init : {"foundation", "open", "random"}
        ``foundation`` leaves the foundation's output as it is; ``open`` starts with bias 3 on the backbone's branch;
        ``random`` is as published.
    gate_hidden : sequence of int
        Hidden width of each layer's gate.
    groups : sequence of str or None
        Keys of the group-level LoRA; None takes all of the data set's.
    lora, user_lora, gate, personal_embedding : bool
        Whether there is any LoRA, and a user-level one, whether gates weigh the branches (else each counts once), and
        whether every user has an own copy of its feature embeddings.
    wide : bool
        Add ``(v + sum_j v_j + v_u) . e_i`` to the logit: a linear term over the item's feature embeddings e_i with a
        shared, a group-level and a user-level part, all of which start at zero (as the wide half of Cheng et al.,
        *Wide & Deep Learning for Recommender Systems*, DLRS 2016).
    item_bias : bool
        Add a shared bias per item to the logit, a table of its own that starts at zero: what private users' clicks say
        of an item beside what the foundation knows of it from open users.
    item_rate : float
        Learning rate of that table, as a factor on ``lr``.
    wide_rate : float
        Learning rate of that term, as a factor on ``lr``.
    """

    rank: Annotated[int, Field(ge=1)] = 4
    alpha: Annotated[float, Field(gt=0)] = 1.0
    lora_init: Literal["random", "zero"] = "random"
    gate_init: Literal["foundation", "open", "random"] = "foundation"
    gate_hidden: tuple[Annotated[int, Field(ge=1)], ...] = (8, 4)
    groups: tuple[str, ...] | None = None
    lora: bool = True
    user_lora: bool = True
    gate: bool = True
    personal_embedding: bool = True
    wide: bool = False
    wide_rate: Annotated[float, Field(gt=0)] = 1.0
    item_bias: bool = False
    item_rate: Annotated[float, Field(gt=0)] = 1.0


def adapter_inputs(settings: AdapterSettings) -> str:
    """What an adapted backbone may read of a row, for a table."""
    return "features, counters, item ids" if settings.item_bias else "features, counters"


class AdaptedMLP:
    """The adapted foundation as a function of its parameters.

    Parameters
    ----------
    settings : AdapterSettings
    rule : callable
        From a parameter's name to its scope.
    foundation : Foundation
    dataset : Dataset
        Gives the features of its users and items.
    seed : int
        For the random starts.
    starts : mapping, optional
        Starts by parameter name that replace the method's own.
    """

    def __init__(
        self,
        settings: AdapterSettings,
        rule: Callable[[str], Scope],
        foundation: Foundation,
        dataset: Dataset,
        *,
        seed: int,
        device: torch.device,
        starts: Mapping[str, Tensor] | None = None,
    ) -> None:
        mlp = foundation.model
        if settings.gate and len(settings.gate_hidden) != len(mlp.layers):
            raise ConfigError(
                f"setting 'gate_hidden': expected one width per layer of the foundation ({len(mlp.layers)}), "
                f"found {list(settings.gate_hidden)}"
            )
        dtype = settings.torch_dtype
        sizes = group_sizes(dataset)
        keys = tuple(sizes) if settings.groups is None else settings.groups
        self._keys = keys
        self._branches = Branches(settings, keys, seed=seed, device=device, starts=starts)
        self.settings = settings
        self.branches, self.gate_scale = self._branches.number, self._branches.gate_scale
        self._dtype, self._device = dtype, device
        self._mlp = mlp
        self.user_codes = torch.from_numpy(dataset.user_codes)
        self.user_table = self._frozen(mlp.tables["user"].get_parameter("weight"))
        self.user_offsets: Tensor = mlp.get_buffer("offsets_user")
        self.context_table = self._frozen(mlp.tables["context"].get_parameter("weight"))
        self.context_offsets: Tensor = mlp.get_buffer("offsets_context").to(device)
        self.frozen = [
            (self._frozen(layer.get_parameter("weight")), self._frozen(layer.get_parameter("bias")))
            for layer in mlp.layers
        ]
        if mlp.dense:
            self.direct = self._frozen(mlp.direct.weight)
        self.items = self._item_table(foundation.inputs.item_codes(dataset))
        tables = [Table("item_bias", dataset.n_items, 1, self._frozen(torch.zeros(dataset.n_items, 1)), own_id)]
        self.layout = Layout(self._blocks(), rule, sizes, tables if settings.item_bias else ())

    def forward(self, blocks: Mapping[str, Tensor], batch: Batch) -> tuple[Tensor, list[Tensor]]:
        """Click logits [users, rows] and each layer's gate weights [users, rows, branches]."""
        user = blocks["user_embedding"] if self.settings.personal_embedding else self._user_start(batch.users)
        user = user[:, None, :]
        weight, bias = self.frozen[0]
        begin, end = self._mlp.width("user"), self._mlp.width("user") + self._mlp.width("item")
        rows, hidden = embedding(batch.items, self.items).split([end - begin, len(weight)], -1)
        hidden = hidden + linear(user, weight[:, :begin], bias)
        own = []
        if len(self.context_offsets):
            own.append(embedding(batch.context + self.context_offsets, self.context_table).flatten(-2))
        if self._mlp.dense:
            own.append(batch.evidence)
        if own:
            rows = torch.cat([rows, *own], -1)
            hidden = hidden + linear(rows[..., end - begin :], weight[:, end:])
        gates = []
        x: Tensor = rows
        for layer, (weight, bias) in enumerate(self.frozen):
            if layer > 0:
                hidden = linear(x, weight, bias)
            backbone = torch.relu(hidden)
            if not self._branches.loras:
                x = backbone
                continue
            name = f"layers.{layer}"
            down_weight = blocks[f"{name}.down"]
            down = split_times(user, rows, down_weight) if layer == 0 else rows_times(x, down_weight)
            x, gate = self._branches.mix(name, blocks, down, backbone)
            if gate is not None:
                gates.append(gate)
        logits = (rows_times(x, blocks["head.weight"]) + blocks["head.bias"][:, None, :]).squeeze(-1)
        if self._mlp.dense:
            logits = logits + linear(batch.evidence, self.direct).squeeze(-1)
        if self.settings.wide:
            taste = blocks["wide"].sum(1, keepdim=True)
            logits = logits + rows_times(rows[..., : end - begin], taste).squeeze(-1)
        if self.settings.item_bias:
            logits = logits + gather_rows(blocks["item_bias"], batch.slots["item_bias"]).squeeze(-1).squeeze(-1)
        return logits, gates

    def _item_table(self, codes: npt.NDArray[np.int32]) -> Tensor:
        """Per item its embeddings and their part of the first layer, which is as frozen as they are."""
        begin, end = self._mlp.width("user"), self._mlp.width("user") + self._mlp.width("item")
        with torch.inference_mode():
            vectors = self._frozen(self._mlp.embed("item", torch.from_numpy(codes).long()))
            return torch.cat([vectors, linear(vectors, self.frozen[0][0][:, begin:end])], 1)

    def _frozen(self, value: Tensor) -> Tensor:
        return value.detach().to(self._device, self._dtype)

    def _blocks(self) -> list[Block]:
        width = self._mlp.width("user")
        blocks = []
        if self.settings.personal_embedding:
            blocks.append(Block("user_embedding", (Parameter("user_embedding", (width,), self._user_start),)))
        for layer, (weight, _) in enumerate(self.frozen):
            out, into = weight.shape
            hidden = self.settings.gate_hidden[layer] if self._branches.gated else 0
            blocks += self._branches.blocks(f"layers.{layer}", into, out, hidden)
        head = self._mlp.head
        blocks.append(self._branches.single("head.weight", tuple(head.weight.shape), head.weight))
        blocks.append(self._branches.single("head.bias", (1,), head.bias))
        if self.settings.wide:
            shape = (1, self._mlp.width("item"))
            names = ["wide.all", "wide.user", *(f"wide.group.{key}.v" for key in self._keys)]
            blocks.append(
                Block("wide", tuple(self._branches.parameter(name, shape, torch.zeros(shape)) for name in names))
            )
        return blocks

    def _user_start(self, users: Tensor) -> Tensor:
        """Each user's start is the foundation's embedding of its features."""
        codes = self.user_codes.index_select(0, users.cpu()) + self.user_offsets
        return embedding(codes.to(self._device), self.user_table).flatten(1)


def own_id(items: Tensor, _: Tensor) -> Tensor:
    """An item's row in a table of items."""
    return items[..., None]
