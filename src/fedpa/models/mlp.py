"""The published backbone: feature embeddings, concatenated, through a multilayer perceptron."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Self

import torch
from torch import Tensor, nn

__all__ = ["MLP", "Features"]

Features = Mapping[str, Sequence[tuple[str, int]]]
"""Per side (``user``, ``item``, ``context``) the features' names and numbers of codes."""

_SIDES = ("user", "item", "context")


class MLP(nn.Module):
    """Feature embeddings and hidden layers with ReLU; the output is a logit.

    Zhang et al., IJCAI 2024, section 4.1: the input is the concatenation of the user's and the item's feature
    embeddings; here a third part, the row's own features, may follow.

    Parameters
    ----------
    features : mapping
        Per side the features' names and numbers of codes.
    embedding : int
        Width of every embedding.
    hidden : sequence of int
        Widths of the layers.
    dense : int
        How many numbers follow the embeddings: what a reader of the user's past says of the candidate. Log-odds for the
        most part, they are also added to the logit directly, each times a weight that starts at zero.
    """

    def __init__(self, features: Features, embedding: int = 8, hidden: Sequence[int] = (32, 8), dense: int = 0) -> None:
        super().__init__()
        self.features = {side: [(str(n), int(k)) for n, k in features[side]] for side in _SIDES}
        self.embedding = embedding
        self.hidden = tuple(hidden)
        self.dense = dense
        self.tables = nn.ModuleDict()
        for side in _SIDES:
            sizes = [size for _, size in self.features[side]]
            self.tables[side] = nn.Embedding(sum(sizes), embedding)
            offsets = torch.tensor([0, *sizes[:-1]]).cumsum(0) if sizes else torch.zeros(0, dtype=torch.int64)
            self.register_buffer(f"offsets_{side}", offsets, persistent=False)
        widths = [sum(self.width(side) for side in _SIDES) + dense, *hidden]
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in pairwise(widths))
        self.head = nn.Linear(widths[-1], 1)
        if dense:
            self.direct = nn.Linear(dense, 1, bias=False)
            nn.init.zeros_(self.direct.weight)

    def width(self, side: str) -> int:
        """Width of one side's part of the input."""
        return len(self.features[side]) * self.embedding

    def spec(self) -> dict[str, Any]:
        """What `from_spec` needs, as JSON."""
        return {
            "architecture": "mlp",
            "features": {side: [[n, k] for n, k in self.features[side]] for side in _SIDES},
            "embedding": self.embedding,
            "hidden": list(self.hidden),
            **({"dense": self.dense} if self.dense else {}),
        }

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Self:
        """An untrained model of the same shape."""
        return cls(spec["features"], spec["embedding"], spec["hidden"], spec.get("dense", 0))

    def embed(self, side: str, codes: Tensor) -> Tensor:
        """Concatenated embeddings [..., features x embedding] of codes [..., features]."""
        offsets: Tensor = getattr(self, f"offsets_{side}")
        found: Tensor = self.tables[side](codes + offsets)
        return found.flatten(-2)

    def named_table(self, side: str, name: str) -> Tensor:
        """The embedding of one feature [codes, embedding], sharing the model's memory."""
        begin = 0
        for feature, size in self.features[side]:
            if feature == name:
                weight: Tensor = self.tables[side].get_parameter("weight")
                return weight.data[begin : begin + size]
            begin += size
        raise KeyError(name)

    def forward(self, user: Tensor, item: Tensor, context: Tensor, dense: Tensor | None = None) -> Tensor:
        """Logits [...] of rows with codes [..., features] on each side and what the past says [..., dense].

        Raises
        ------
        ValueError
            If the model reads a user's past and got none.
        """
        parts = [self.embed("user", user), self.embed("item", item), self.embed("context", context)]
        if self.dense:
            if dense is None:
                raise ValueError(f"the model reads {self.dense} numbers of a user's past, got none")
            parts.append(dense)
        x = torch.cat(parts, -1)
        for layer in self.layers:
            x = torch.relu(layer(x))
        logits: Tensor = self.head(x)
        if self.dense:
            logits = logits + self.direct(dense)
        return logits.squeeze(-1)
