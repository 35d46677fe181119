"""A personal term added to the logit of any model."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fedpa.federation.parameters import PERSONAL, Block, Parameter
from fedpa.federation.rows import Batch
from fedpa.federation.rule import AdaptedModel

__all__ = ["WithPersonalBias"]

_NAME = "user_bias"


class WithPersonalBias:
    """A model whose users each learn and keep one term of the logit; it starts at zero.

    Parameters
    ----------
    model : AdaptedModel
    """

    def __init__(self, model: AdaptedModel) -> None:
        self.model = model
        self.layout = model.layout.extended(Block(_NAME, (Parameter(_NAME, (1,), torch.zeros(1)),)), PERSONAL)

    def forward(self, blocks: Mapping[str, Tensor], batch: Batch) -> tuple[Tensor, list[Tensor]]:
        """Logits [users, rows] with each user's own term added, and the model's gates."""
        logits, gates = self.model.forward(blocks, batch)
        return logits + blocks[_NAME], gates
