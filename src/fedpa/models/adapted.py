"""The published backbone with adapters: low-rank branches around every layer, mixed by gates, and a head.

Zhang et al., *Federated Adaptation for Foundation Model-based Recommendations*, IJCAI 2024, arXiv 2405.04840. For layer
l with input x, frozen W and b, rank r, s = alpha / r and adapters A_j, B_j:

    g  = c softmax(W2 relu(W1 x + c1) + c2)
    x' = g[0] relu(W x + b) + s sum_j g[1 + j] B_j A_j x

As published c = 1 and the gates start at random; with ``gate_init: foundation`` W2 and c2 start at zero and c is
the number of branches, so that every branch starts with weight one and, B being zero, x' is the foundation's. Without
gates every weight is one (Hu et al., *LoRA*, ICLR 2022, eq. 3, with the branch beside the activation as in FedPA).
Which adapters there are is a setting; who trains them is the rule's affair, so that this one model serves every method
that adapts a frozen foundation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import embedding, linear

from fedpa.data.dataset import Dataset
from fedpa.draws import generator
from fedpa.errors import ConfigError
from fedpa.federation.parameters import Block, Layout, Parameter, Scope, Table
from fedpa.federation.rows import Batch, group_sizes
from fedpa.models.foundation import Foundation
from fedpa.models.products import gather_rows, rows_times, split_times
from fedpa.settings import Settings

__all__ = ["AdaptedMLP", "AdapterSettings", "adapter_inputs"]


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
        self.loras = [*(["user"] if settings.user_lora else []), *(f"group.{key}" for key in keys)] * settings.lora
        self.settings = settings
        self.branches = 1 + len(self.loras)
        self.gated = settings.gate and self.branches > 1
        self.gate_scale = float(self.branches) if settings.gate_init == "foundation" else 1.0
        self._starts = starts or {}
        self._seed = seed
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
        self.items = self._item_table(dataset)
        # From gates [branches] to the factor of every low-rank unit [adapters x rank].
        self.scale = settings.alpha / settings.rank
        units = torch.eye(self.branches)[1:].repeat_interleave(settings.rank, 0)
        self._spread = self._frozen(units * self.scale)
        tables = [Table("item_bias", dataset.n_items, 1, self._frozen(torch.zeros(dataset.n_items, 1)), _own_id)]
        self.layout = Layout(self._blocks(), rule, sizes, tables if settings.item_bias else ())

    def forward(self, blocks: Mapping[str, Tensor], batch: Batch) -> tuple[Tensor, list[Tensor]]:
        """Click logits [users, rows] and each layer's gate weights [users, rows, branches]."""
        user = blocks["user_embedding"] if self.settings.personal_embedding else self._user_start(batch.users)
        user = user[:, None, :]
        weight, bias = self.frozen[0]
        begin, end = self._mlp.width("user"), self._mlp.width("user") + self._mlp.width("item")
        rows, hidden = embedding(batch.items, self.items).split([end - begin, len(weight)], -1)
        hidden = hidden + linear(user, weight[:, :begin], bias)
        if len(self.context_offsets):
            context = embedding(batch.context + self.context_offsets, self.context_table).flatten(-2)
            rows = torch.cat([rows, context], -1)
            hidden = hidden + linear(context, weight[:, end:])
        gates = []
        x: Tensor = rows
        for layer, (weight, bias) in enumerate(self.frozen):
            if layer > 0:
                hidden = linear(x, weight, bias)
            backbone = torch.relu(hidden)
            if not self.loras:
                x = backbone
                continue
            down_weight = blocks[f"layers.{layer}.down"]
            down = split_times(user, rows, down_weight) if layer == 0 else rows_times(x, down_weight)
            if self.gated:
                x, gate = self._mix(layer, blocks, down, backbone)
                gates.append(gate)
            else:
                x = torch.baddbmm(backbone, down, blocks[f"layers.{layer}.up"], alpha=self.scale)
        logits = (rows_times(x, blocks["head.weight"]) + blocks["head.bias"][:, None, :]).squeeze(-1)
        if self.settings.wide:
            taste = blocks["wide"].sum(1, keepdim=True)
            logits = logits + rows_times(rows[..., : end - begin], taste).squeeze(-1)
        if self.settings.item_bias:
            logits = logits + gather_rows(blocks["item_bias"], batch.slots["item_bias"]).squeeze(-1).squeeze(-1)
        return logits, gates

    def _mix(self, layer: int, blocks: Mapping[str, Tensor], down: Tensor, backbone: Tensor) -> tuple[Tensor, Tensor]:
        """Gate the branches of one layer and add them up."""
        name = f"layers.{layer}"
        adapters = len(self.loras) * self.settings.rank
        hidden = torch.relu(down[..., adapters:] + blocks[f"{name}.gate.0.bias"][:, None, :])
        scores = rows_times(hidden, blocks[f"{name}.gate.1.weight"]) + blocks[f"{name}.gate.1.bias"][:, None, :]
        # Over the middle axis: the kernel for a last axis of a few branches is several times slower.
        gate = torch.softmax(scores.transpose(1, 2).contiguous(), 1).transpose(1, 2) * self.gate_scale
        scaled = down[..., :adapters] * linear(gate, self._spread)
        mixed = torch.bmm(scaled, blocks[f"{name}.up"])
        return torch.addcmul(mixed, gate[..., :1], backbone), gate

    def _item_table(self, dataset: Dataset) -> Tensor:
        """Per item its embeddings and their part of the first layer, which is as frozen as they are."""
        begin, end = self._mlp.width("user"), self._mlp.width("user") + self._mlp.width("item")
        with torch.inference_mode():
            vectors = self._frozen(self._mlp.embed("item", torch.from_numpy(dataset.item_codes).long()))
            return torch.cat([vectors, linear(vectors, self.frozen[0][0][:, begin:end])], 1)

    def _frozen(self, value: Tensor) -> Tensor:
        return value.detach().to(self._device, self._dtype)

    def _blocks(self) -> list[Block]:
        rank = self.settings.rank
        width = self._mlp.width("user")
        blocks = []
        if self.settings.personal_embedding:
            blocks.append(Block("user_embedding", (Parameter("user_embedding", (width,), self._user_start),)))
        for layer, (weight, _) in enumerate(self.frozen if self.loras else ()):
            name = f"layers.{layer}"
            out, into = weight.shape
            down = [self._parameter(f"{name}.{lora}.a", (rank, into)) for lora in self.loras]
            up = [self._parameter(f"{name}.{lora}.b", (rank, out)) for lora in self.loras]
            if self.gated:
                hidden = self.settings.gate_hidden[layer]
                down.append(self._parameter(f"{name}.gate.0.weight", (hidden, into)))
            blocks.append(Block(f"{name}.down", tuple(down)))
            if self.gated:
                blocks += [
                    self._single(f"{name}.gate.0.bias", (hidden,)),
                    self._single(f"{name}.gate.1.weight", (self.branches, hidden)),
                    self._single(f"{name}.gate.1.bias", (self.branches,)),
                ]
            blocks.append(Block(f"{name}.up", tuple(up)))
        head = self._mlp.head
        blocks.append(self._single("head.weight", tuple(head.weight.shape), head.weight))
        blocks.append(self._single("head.bias", (1,), head.bias))
        if self.settings.wide:
            shape = (1, self._mlp.width("item"))
            names = ["wide.all", "wide.user", *(f"wide.group.{key}.v" for key in self._keys)]
            blocks.append(Block("wide", tuple(self._parameter(name, shape, torch.zeros(shape)) for name in names)))
        return blocks

    def _single(self, name: str, shape: tuple[int, ...], start: Tensor | None = None) -> Block:
        return Block(name, (self._parameter(name, shape, start),))

    def _parameter(self, name: str, shape: tuple[int, ...], start: Tensor | None = None) -> Parameter:
        if name in self._starts:
            given = self._starts[name]
            return Parameter(name, shape, self._frozen(given), per_value=given.dim() > len(shape))
        value = self._start(name, shape) if start is None else start
        return Parameter(name, shape, self._frozen(value))

    def _start(self, name: str, shape: tuple[int, ...]) -> Tensor:
        settings = self.settings
        lora_a = name.endswith(".a")
        if name.endswith(".b") or (lora_a and settings.lora_init == "zero"):
            return torch.zeros(shape)
        if ".gate.1." in name and settings.gate_init == "foundation":
            return torch.zeros(shape)
        if name.endswith(".gate.1.bias") and settings.gate_init == "open":
            return torch.tensor([3.0] + [0.0] * (shape[0] - 1))
        fan_in = shape[-1] if len(shape) > 1 else self._fan_in(name)
        draw: Tensor = torch.rand(shape, dtype=torch.float64, generator=generator(self._seed, f"start/{name}"))
        return (2 * draw - 1).div(fan_in**0.5)

    def _fan_in(self, bias: str) -> int:
        layer = int(bias.split(".")[1])
        return int(self.frozen[layer][0].shape[1]) if ".gate.0." in bias else self.settings.gate_hidden[layer]

    def _user_start(self, users: Tensor) -> Tensor:
        """Each user's start is the foundation's embedding of its features."""
        codes = self.user_codes.index_select(0, users.cpu()) + self.user_offsets
        return embedding(codes.to(self._device), self.user_table).flatten(1)


def _own_id(items: Tensor, _: Tensor) -> Tensor:
    """An item's row in a table of items."""
    return items[..., None]
