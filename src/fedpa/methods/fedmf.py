"""FedMF: matrix factorisation whose item vectors are averaged and whose user vectors stay.

Chai et al., *Secure Federated Matrix Factorization*, IEEE Intelligent Systems 36(5), 2021, equations 2 to 5: the
score is ``p_u . q_i``; a device updates p_u and sends the change of Q. Departures: clicks are labels of a logistic
loss instead of ratings of a squared one, the local optimiser may be Adam, several local epochs are possible, and
there is no homomorphic encryption: the server receives exact sums.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from fedpa.data.dataset import Dataset
from fedpa.federation.parameters import PERSONAL, SHARED, Parameter, Scope, Table
from fedpa.federation.rule import AdaptedModel
from fedpa.methods.method import Family, FederatedMethod, register
from fedpa.models.foundation import Foundation
from fedpa.models.items import ItemIdModel, ItemSettings

__all__ = ["Factors", "FedMF", "ItemIdMethod"]


class Factors(ItemIdModel):
    """The score is the product of the user's and the item's vector."""

    def parts(self) -> tuple[list[Table], list[Parameter]]:
        """Item vectors and the user's vector."""
        return [self.item_table("items")], [self.user_vector("user", self.settings.width)]

    def logits(self, blocks: Mapping[str, Tensor], rows: Mapping[str, Tensor]) -> Tensor:
        """``p_u . q_i`` [users, rows]."""
        return (rows["items"] * blocks["user"]).sum(-1)


class ItemIdMethod(FederatedMethod):
    """What methods of item ids share: alone as published, or above the foundation's logit."""

    family: ClassVar[Family] = "federated"
    settings_type: ClassVar[type[ItemSettings]] = ItemSettings
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"default": {}, "foundation": {"on_foundation": True}}
    model_type: ClassVar[type[ItemIdModel]]

    @property
    def reads_foundation(self) -> bool:
        """Only where the foundation's logit is added."""
        return cast(ItemSettings, self.settings).on_foundation

    @property
    def inputs(self) -> str:
        """Item ids, and what the foundation reads where there is one."""
        return "item ids, features, counters" if self.reads_foundation else "item ids"

    def scope(self, name: str) -> Scope:
        """The item table is shared, everything else personal."""
        return SHARED if name == "items" else PERSONAL

    def build(self, foundation: Foundation | None, dataset: Dataset, seed: int, device: torch.device) -> AdaptedModel:
        """The model on this data set's items."""
        below = self.needed(foundation) if self.reads_foundation else None
        settings = cast(ItemSettings, self.settings)
        return self.model_type(settings, self.scope, below, dataset, seed=seed, device=device)


@register
class FedMF(ItemIdMethod):
    """Matrix factorisation: shared item vectors, personal user vectors."""

    name = "fedmf"
    compared: ClassVar[Mapping[str, str]] = {"default": "FedMF", "foundation": "FedMF + foundation"}
    model_type = Factors
