"""FedPA: user-level and group-level LoRA around every layer of the foundation, mixed by gates.

Zhang et al., *Federated Adaptation for Foundation Model-based Recommendations*, IJCAI 2024, arXiv 2405.04840, section
4; the model is `fedpa.models.adapted`. Departure from the published code, whose LoRA factors both start at zero and so
never train: A starts at random (``lora_init: zero`` brings the published start back). A user's LoRA starts from the
same A for all users.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, cast

import torch

from fedpa.data.dataset import Dataset
from fedpa.federation.parameters import PERSONAL, SHARED, Scope, group
from fedpa.methods.method import Family, FederatedMethod, register
from fedpa.models.adapted import AdaptedMLP, AdapterSettings
from fedpa.models.foundation import Foundation

__all__ = ["FedPA"]


@register
class FedPA(FederatedMethod):
    """User-level and group-level LoRA around every layer of the foundation, mixed by gates."""

    name = "fedpa"
    family: ClassVar[Family] = "adapter"
    settings_type = AdapterSettings
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {},
        "reference": {"lora_init": "zero", "gate_init": "random", "lr": 0.1, "patience": 0},
        "repaired": {"gate_init": "open", "lr": 0.01},
        "no-user-lora": {"user_lora": False},
        "no-group-lora": {"groups": ()},
        "no-gate": {"gate": False},
        "no-personal-embeddings": {"personal_embedding": False},
    }
    compared: ClassVar[Mapping[str, str]] = {
        "reference": "FedPA, as published",
        "repaired": "FedPA, repaired",
        "default": "FedPA",
        "no-user-lora": "FedPA without user-level LoRA",
        "no-group-lora": "FedPA without group-level LoRA",
        "no-gate": "FedPA without gates",
        "no-personal-embeddings": "FedPA without personal embeddings",
    }

    def scope(self, name: str) -> Scope:
        """User-level LoRA and user embeddings are personal, group-level LoRA grouped, the rest shared."""
        if ".group." in name:
            return group(name.split(".group.")[1].rsplit(".", 1)[0])
        if name.startswith("user_") or ".user." in name or name.endswith(".user"):
            return PERSONAL
        return SHARED

    def lr_scale(self, name: str) -> float:
        """The wide term and the items' biases have rates of their own."""
        settings = cast(AdapterSettings, self.settings)
        if name == "item_bias":
            return settings.item_rate
        return settings.wide_rate if name.startswith("wide.") else 1.0

    def build(self, foundation: Foundation | None, dataset: Dataset, seed: int, device: torch.device) -> AdaptedMLP:
        """Put adapters around the foundation's layers."""
        settings = cast(AdapterSettings, self.settings)
        return AdaptedMLP(settings, self.scope, self.needed(foundation), dataset, seed=seed, device=device)
