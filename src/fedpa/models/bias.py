"""A personal term added to the logit of any model."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fedpa.federation.parameters import PERSONAL, Block, Parameter
from fedpa.federation.rows import Batch
from fedpa.federation.rule import AdaptedModel, WithLoss

__all__ = ["WithPersonalBias"]

_NAME = "user_bias"


class WithPersonalBias:
    """A model whose users each learn and keep one term of every logit; it starts at zero.

    Parameters
    ----------
    model : AdaptedModel
    labels : int
        Logits per row.
    """

    def __init__(self, model: AdaptedModel, labels: int = 1) -> None:
        self.model = model
        term = Parameter(_NAME, (labels,), torch.zeros(labels))
        self.layout = model.layout.extended(Block(_NAME, (term,)), PERSONAL)
        if isinstance(model, WithLoss):
            self.loss = model.loss

    def forward(self, blocks: Mapping[str, Tensor], batch: Batch) -> tuple[Tensor, list[Tensor]]:
        """Logits [users, rows] or [users, rows, labels] with each user's own term added, and the model's gates."""
        logits, gates = self.model.forward(blocks, batch)
        return logits + (blocks[_NAME] if logits.dim() == 2 else blocks[_NAME][:, None, :]), gates
