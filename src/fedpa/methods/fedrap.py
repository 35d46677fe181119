"""FedRAP: the sum of a shared and a personal item embedding.

Li, Long and Zhou, *Federated Recommendation with Additive Personalization*, ICLR 2024, algorithm 1: the score is a
personal linear layer over ``D_u + C``; the local objective is the log-loss minus ``lambda |D_u - C|^2``, which drives
them apart, plus ``mu |C|_1``, both grown from round to round with ``tanh((round - 1) / 10)``. C is averaged, D_u and
the layer stay.

As in the published code both terms are means over a batch's rows and an embedding's entries, and scoring takes the
averaged C. Departures: the difference counts only up to one, since its negative is unbounded and with the published
rates the embeddings run away where users have few rows; local epochs are fixed instead of stopping at convergence; the
rate does not decay; ``lambda`` and ``mu`` do grow, whereas the published code computes the grown ones without using
them; no noise is added to C.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, cast

from pydantic import Field
from torch import Tensor

from fedpa.federation.parameters import Parameter, Table
from fedpa.federation.rule import AdaptedModel, LocalStep
from fedpa.methods.item_ids import ItemIdMethod, item_presets
from fedpa.methods.method import register
from fedpa.models.items import ItemIdModel, ItemSettings
from fedpa.models.products import rows_times

__all__ = ["Additive", "FedRAP", "FedRAPSettings"]


class FedRAPSettings(ItemSettings):
    """Settings of FedRAP.

    Attributes
    ----------
    apart, sparse : float
        lambda and mu, once the schedule has grown them.
    own_rate : float
        Learning rate of the personal table, as a factor on ``lr``; published is that of the shared one.
    """

    apart: Annotated[float, Field(ge=0)] = 0.1
    sparse: Annotated[float, Field(ge=0)] = 0.001
    own_rate: Annotated[float, Field(gt=0)] = 1.0


class Additive(ItemIdModel):
    """One personal linear layer over the sum of two embeddings."""

    def parts(self) -> tuple[list[Table], list[Parameter]]:
        """The shared and the personal table, and the layer, which starts at zero above a foundation."""
        score = self.linear("score", self.settings.width, 1, zero=self.settings.on_foundation)
        return [self.item_table("items"), self.item_table("own_items")], score

    def logits(self, blocks: Mapping[str, Tensor], rows: Mapping[str, Tensor]) -> Tensor:
        """``w_u . (c_i + d_ui) + b_u`` [users, rows]."""
        both = rows["items"] + rows["own_items"]
        return (rows_times(both, blocks["score.weight"]) + blocks["score.bias"][:, None, :]).squeeze(-1)


@register
class FedRAP(ItemIdMethod):
    """The sum of a shared and a personal item embedding under a personal score function."""

    name = "fedrap"
    settings_type = FedRAPSettings
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = item_presets(
        optimizer="sgd", lr=0.1, item_rate=2.0, own_rate=10.0
    )
    compared: ClassVar[Mapping[str, str]] = {"default": "FedRAP", "foundation": "FedRAP + foundation"}
    model_type = Additive

    def local_loss(self, model: AdaptedModel, step: LocalStep) -> Tensor:
        """Log-loss, minus the difference of the two embeddings, plus the size of the shared one."""
        settings = cast(FedRAPSettings, self.settings)
        loss = super().local_loss(model, step)
        additive = cast(Additive, getattr(model, "model", model))
        rows = additive.item_rows(step.blocks, step.batch)
        grown = math.tanh((step.round - 1) / 10)
        apart = (rows["own_items"] - rows["items"]).square().mean(-1).clamp(max=1.0)
        size = rows["items"].abs().mean(-1)
        return loss + grown * ((settings.sparse * size - settings.apart * apart) * step.weights).sum(1)

    def lr_scale(self, name: str) -> float:
        """Both tables have rates of their own."""
        return cast(FedRAPSettings, self.settings).own_rate if name == "own_items" else super().lr_scale(name)
