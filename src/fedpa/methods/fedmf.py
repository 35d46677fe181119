"""FedMF: matrix factorisation whose item vectors are averaged and whose user vectors stay.

Chai et al., *Secure Federated Matrix Factorization*, IEEE Intelligent Systems 36(5), 2021, algorithm 1: the score is
``p_u . q_i``; a device takes gradient steps on its p_u and sends what they say of Q, to which the server applies it.
Departures: clicks are labels of a logistic loss instead of ratings of a squared one with a penalty; the server adds the
mean of what devices send and not their sum, which is the same with an ``item_rate`` of 1; several local steps and Adam
are possible; there is no homomorphic encryption: the server receives exact sums; all users start from the same vector
(see `ItemIdModel.user_vector`).

Preset ``published`` has the optimiser, rates, width, batches and rounds of the code published with PFedRec (Zhang et
al., IJCAI 2023), which takes FedMF, FedNCF and FedRecon for baselines but does not hold them; products of 32 factors
start small here, since standard normal ones start saturated.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor

from fedpa.data.dataset import PRIVATE, Dataset
from fedpa.federation.parameters import PERSONAL, SHARED, Parameter, Scope, Table
from fedpa.federation.rule import AdaptedModel
from fedpa.methods.method import Family, FederatedMethod, register
from fedpa.models.foundation import Foundation
from fedpa.models.items import ItemIdModel, ItemSettings

__all__ = ["Factors", "FedMF", "ItemIdMethod", "item_presets"]

_PUBLISHED: Mapping[str, Any] = {
    "width": 32,
    "std": 1.0,
    "optimizer": "sgd",
    "lr": 0.1,
    "item_rate": None,
    "epochs": 1,
    "batch_size": 256,
    "rounds": 100,
    "patience": 0,
}
_ETA = 80
"""``lr_eta`` in the code published with PFedRec."""


def item_presets(published: Mapping[str, Any] | None = None, **default: Any) -> dict[str, dict[str, Any]]:
    """Presets of a method of item ids.

    Parameters
    ----------
    published : mapping, optional
        What preset ``published`` has beside the settings of PFedRec's code; without it there is no such preset.
    **default
        Settings of preset ``default`` and, above the foundation's logit, of preset ``foundation``.
    """
    presets = {"default": default, "foundation": {**default, "on_foundation": True}}
    return presets if published is None else {**presets, "published": {**_PUBLISHED, **published}}


class Factors(ItemIdModel):
    """The score is the product of the user's and the item's vector."""

    def parts(self) -> tuple[list[Table], list[Parameter]]:
        """Item vectors, which start at zero above a foundation, and the user's vector."""
        spread = 0.0 if self.settings.on_foundation else None
        return [self.item_table("items", std=spread)], [self.user_vector("user", self.settings.width)]

    def logits(self, blocks: Mapping[str, Tensor], rows: Mapping[str, Tensor]) -> Tensor:
        """``p_u . q_i`` [users, rows]."""
        return (rows["items"] * blocks["user"]).sum(-1)


class ItemIdMethod(FederatedMethod):
    """What methods of item ids share: alone as published, or above the foundation's logit."""

    family: ClassVar[Family] = "federated"
    settings_type: ClassVar[type[ItemSettings]] = ItemSettings
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = item_presets()
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

    def lr_scale(self, name: str) -> float:
        """Item tables have a rate of their own."""
        if not name.startswith("items"):
            return 1.0
        rate = cast(ItemSettings, self.settings).item_rate
        if rate is None:
            return _ETA * self._items
        averaged = self.settings.table_mean == "participants"
        return rate * self.settings.participation * self._users if averaged else rate

    def build(self, foundation: Foundation | None, dataset: Dataset, seed: int, device: torch.device) -> AdaptedModel:
        """The model on this data set's items."""
        self._items, self._users = float(dataset.n_items), float(np.count_nonzero(dataset.side == PRIVATE))
        below = self.needed(foundation) if self.reads_foundation else None
        settings = cast(ItemSettings, self.settings)
        return self.model_type(settings, self.scope, below, dataset, seed=seed, device=device)


@register
class FedMF(ItemIdMethod):
    """Matrix factorisation: shared item vectors, personal user vectors."""

    name = "fedmf"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = item_presets(
        {"std": 0.1}, optimizer="sgd", lr=0.1, item_rate=2.0
    )
    compared: ClassVar[Mapping[str, str]] = {"default": "FedMF", "foundation": "FedMF + foundation"}
    model_type = Factors
