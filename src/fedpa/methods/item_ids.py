"""What methods of item ids share: alone as published, or above the foundation's logit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, cast

import torch

from fedpa.data.dataset import Dataset
from fedpa.data.shard import private_users
from fedpa.federation.parameters import PERSONAL, SHARED, Scope
from fedpa.federation.rule import AdaptedModel
from fedpa.methods.method import Family, FederatedMethod
from fedpa.models.foundation import Foundation
from fedpa.models.items import ItemIdModel, ItemSettings

__all__ = ["ItemIdMethod", "item_presets"]

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
        self._items, self._users = float(dataset.n_items), float(private_users(dataset))
        below = self.needed(foundation) if self.reads_foundation else None
        settings = cast(ItemSettings, self.settings)
        return self.model_type(settings, self.scope, below, dataset, seed=seed, device=device)
