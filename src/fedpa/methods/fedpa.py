"""FedPA: user-level and group-level LoRA around every layer of the foundation, mixed by gates.

Zhang et al., *Federated Adaptation for Foundation Model-based Recommendations*, IJCAI 2024, arXiv 2405.04840, section
4; the model is `fedpa.models.adapted`. Departure from the published code, whose LoRA factors both start at zero and so
never train: A starts at random (``lora_init: zero`` brings the published start back). A user's LoRA starts from the
same A for all users.

Presets ``reference`` and ``repaired`` have the published parts alone. ``default`` adds a wide term over the item's
embeddings with user-level, group-level and shared parts, a shared bias per item, a bias per user, everybody's item
counts beside open users', and a prior on all that is personal; it takes gradient steps instead of Adam's, whose first
one moves every weight by the same amount however little a user's few rows say about it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, cast

import torch

from fedpa.data.dataset import Dataset
from fedpa.federation.parameters import PERSONAL, SHARED, Scope, group
from fedpa.methods.method import Family, FederatedMethod, register
from fedpa.models.adapted import AdaptedMLP, AdapterSettings, adapter_inputs
from fedpa.models.foundation import Foundation
from fedpa.models.wrap.model import WrappedModel
from fedpa.models.wrap.wrapped import Wrapped

__all__ = ["BEST", "FedPA"]


BEST: Mapping[str, Any] = {
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
    "item_counts": 16,
    "personal_bias": True,
    "personal_decay": 10.0,
    "select": "mean",
}
"""What did best on pseudo-private users of the synthetic set, KuaiRand-Pure and KuaiSAR-R; each part has a row without
it."""

_TABLES = ("table_mean", "table_prior", "wide_rate", "item_rate")
_ABLATIONS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "no-user-lora": ("user-level LoRA", {"user_lora": False}),
    "no-group-lora": ("group-level parts", {"groups": ()}),
    "no-lora": ("any LoRA", {"lora": False}),
    "no-gate": ("gates", {"gate": False}),
    "no-personal-embeddings": ("personal embeddings", {"personal_embedding": False}),
    "no-wide": ("the wide term", {"wide": False}),
    "no-item-bias": ("item biases", {"item_bias": False}),
    "no-item-counts": ("everybody's item counts", {"item_counts": 0}),
    "no-user-bias": ("the user's bias", {"personal_bias": False}),
    "no-prior": ("the prior", {"personal_decay": 0.0}),
}
"""By preset what it is without, and the settings that leave it out."""


@register
class FedPA(FederatedMethod):
    """User-level and group-level LoRA around every layer of the foundation, mixed by gates."""

    name = "fedpa"
    family: ClassVar[Family] = "adapter"
    settings_type = AdapterSettings
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": BEST,
        "reference": {"lora_init": "zero", "gate_init": "random", "lr": 0.1, "patience": 0},
        "repaired": {"gate_init": "open", "lr": 0.01},
        **{name: {**BEST, **without} for name, (_, without) in _ABLATIONS.items()},
    }
    compared: ClassVar[Mapping[str, str]] = {
        "reference": "FedPA, as published",
        "repaired": "FedPA, repaired",
        "default": "FedPA, extended",
        **{name: f"- without {what}" for name, (what, _) in _ABLATIONS.items()},
    }
    held: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "reference": ("*",),
        "repaired": ("wide", "item_bias", "item_counts", "personal_bias", "personal_decay", *_TABLES),
        "default": ("personal_bias",),
        **{name: tuple(without) for name, (_, without) in _ABLATIONS.items()},
    }
    follows: ClassVar[Mapping[str, str]] = dict.fromkeys(_ABLATIONS, "default")

    @property
    def inputs(self) -> str:
        """Item ids too, where there are biases of items."""
        return adapter_inputs(cast(AdapterSettings, self.settings))

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

    def build_wrapped(self, wrapped: Wrapped, dataset: Dataset, seed: int, device: torch.device) -> WrappedModel:
        """Put adapters around the module's targets."""
        settings = cast(AdapterSettings, self.settings)
        return WrappedModel(settings, self.scope, wrapped, dataset, seed=seed, device=device)
