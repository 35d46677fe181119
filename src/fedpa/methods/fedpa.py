"""FedPA: user-level and group-level LoRA around every layer of the foundation, mixed by gates.

Zhang et al., *Federated Adaptation for Foundation Model-based Recommendations*, IJCAI 2024, arXiv 2405.04840, section
4; the model is `fedpa.models.adapted`. Departure from the published code, whose LoRA factors both start at zero and so
never train: A starts at random (``lora_init: zero`` brings the published start back). A user's LoRA starts from the
same A for all users.

Presets ``reference`` and ``repaired`` have the published parts alone. ``default`` adds a wide term over the item's
embeddings with user-level, group-level and shared parts, a shared bias per item, a bias per user, and a prior on all
that is personal; it takes gradient steps instead of Adam's, whose first one moves every weight by the same amount
however little a user's few rows say about it.
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


_BEST: Mapping[str, Any] = {
    "optimizer": "sgd",
    "lr": 0.1,
    "epochs": 2,
    "alpha": 4.0,
    "wide": True,
    "wide_rate": 10.0,
    "item_bias": True,
    "item_rate": 10.0,
    "table_mean": "touched",
    "table_prior": 5.0,
    "personal_bias": True,
    "personal_decay": 10.0,
    "select": "mean",
}
"""What did best on pseudo-private users, whose figures stand in the documentation; each has a row without it."""


@register
class FedPA(FederatedMethod):
    """User-level and group-level LoRA around every layer of the foundation, mixed by gates."""

    name = "fedpa"
    family: ClassVar[Family] = "adapter"
    settings_type = AdapterSettings
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": _BEST,
        "reference": {"lora_init": "zero", "gate_init": "random", "lr": 0.1, "patience": 0},
        "repaired": {"gate_init": "open", "lr": 0.01},
        "no-user-lora": {**_BEST, "user_lora": False},
        "no-group-lora": {**_BEST, "groups": ()},
        "no-gate": {**_BEST, "gate": False},
        "no-personal-embeddings": {**_BEST, "personal_embedding": False},
        "no-lora": {**_BEST, "lora": False},
        "no-wide": {**_BEST, "wide": False},
        "no-item-bias": {**_BEST, "item_bias": False},
        "no-user-bias": {**_BEST, "personal_bias": False},
        "no-prior": {**_BEST, "personal_decay": 0.0},
    }
    compared: ClassVar[Mapping[str, str]] = {
        "reference": "FedPA, as published",
        "repaired": "FedPA, repaired",
        "default": "FedPA",
        "no-user-lora": "FedPA without user-level LoRA",
        "no-group-lora": "FedPA without group-level LoRA",
        "no-lora": "FedPA without any LoRA",
        "no-gate": "FedPA without gates",
        "no-personal-embeddings": "FedPA without personal embeddings",
        "no-wide": "FedPA without the wide term",
        "no-item-bias": "FedPA without item biases",
        "no-user-bias": "FedPA without the user's bias",
        "no-prior": "FedPA without the prior",
    }

    held: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "reference": ("*",),
        "no-user-bias": ("personal_bias",),
        "no-prior": ("personal_decay",),
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
