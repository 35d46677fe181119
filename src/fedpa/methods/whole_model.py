"""What methods that train the whole backbone share: it starts at random as published, or at the foundation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, cast

import torch

from fedpa.data.dataset import Dataset
from fedpa.federation.parameters import SHARED, Scope
from fedpa.federation.rule import AdaptedModel
from fedpa.methods.method import Family, FederatedMethod
from fedpa.models.foundation import Foundation
from fedpa.models.whole import WholeMLP, WholeSettings

__all__ = ["WholeModelMethod"]


class WholeModelMethod(FederatedMethod):
    """What FedAvg, FedProx and FedRep share: the backbone, started at random or at the foundation."""

    family: ClassVar[Family] = "federated"
    settings_type = WholeSettings
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"default": {}, "foundation": {"on_foundation": True}}

    @property
    def reads_foundation(self) -> bool:
        """Only where it starts at one."""
        return cast(WholeSettings, self.settings).on_foundation

    def scope(self, name: str) -> Scope:
        """Everything is shared."""
        return SHARED

    def build(self, foundation: Foundation | None, dataset: Dataset, seed: int, device: torch.device) -> AdaptedModel:
        """The backbone with all of its weights."""
        start = self.needed(foundation) if self.reads_foundation else None
        settings = cast(WholeSettings, self.settings)
        return WholeMLP(settings, self.scope, start, dataset, seed=seed, device=device)
