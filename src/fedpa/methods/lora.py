"""Low-rank adapters under other scopes: FedIT, FFA-LoRA, FedSA-LoRA and a personal LoRA.

One LoRA per layer of the frozen foundation and, as in FedPA, a head that is trained and averaged, so that the rows of a
table differ in the adapter's scope alone; there are no gates, groups or personal embeddings. The papers adapt language
models, whose head stays frozen: that is ``head: frozen``.

Zhang et al., *Towards Building the FederatedGPT: Federated Instruction Tuning* (FedIT), ICASSP 2024, section 3; Sun
et al., *Improving LoRA in Privacy-Preserving Federated Learning* (FFA-LoRA), ICLR 2024, section 4: A keeps its random
start for ever and B is averaged; Guo et al., *Selective Aggregation for Low-Rank Adaptation in Federated Learning*
(FedSA-LoRA), ICLR 2025, section 4: A is averaged and B is personal.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, cast

import torch

from fedpa.data.dataset import Dataset
from fedpa.federation.parameters import FROZEN, PERSONAL, SHARED, Scope
from fedpa.methods.method import Family, FederatedMethod, register
from fedpa.models.adapted import AdaptedMLP, AdapterSettings, adapter_inputs
from fedpa.models.foundation import Foundation
from fedpa.models.wrap.model import WrappedModel
from fedpa.models.wrap.wrapped import Wrapped

__all__ = ["STEPS", "FFALoRA", "FedIT", "FedSALoRA", "LoRAMethod", "LoRASettings", "PersonalLoRA"]

_FEDPAS = ("groups", "gate", "personal_embedding", "wide")
_HEADS = {"shared": SHARED, "personal": PERSONAL, "frozen": FROZEN}


class LoRASettings(AdapterSettings):
    """Settings of one LoRA around each layer.

    Attributes
    ----------
    head : {"shared", "personal", "frozen"}
        Who trains the output head.
    """

    # One adapter a layer is all there is; the other parts are FedPA's.
    groups: tuple[()] = ()
    gate: Literal[False] = False
    personal_embedding: Literal[False] = False
    wide: Literal[False] = False
    head: Literal["shared", "personal", "frozen"] = "shared"

    @classmethod
    def _explain(cls, error: Any) -> str:
        key = str(error["loc"][0]) if error["loc"] else ""
        if key not in _FEDPAS:
            return super()._explain(error)
        only = "[]" if key == "groups" else "False"
        return f"setting {key!r}: expected {only}, found {error['input']!r}; only fedpa and local-only have this part"


STEPS: Mapping[str, Any] = {"optimizer": "sgd", "lr": 0.1, "epochs": 2, "alpha": 4.0, "personal_decay": 10.0}
"""The steps of FedPA's default preset, so that presets differ in the adapter alone."""


class LoRAMethod(FederatedMethod):
    """A LoRA around each layer; a method says who trains its two factors."""

    family: ClassVar[Family] = "adapter"
    settings_type = LoRASettings
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"default": STEPS}
    factors: ClassVar[tuple[Scope, Scope]]
    """Scopes of A and of B."""

    @property
    def inputs(self) -> str:
        """Item ids too, where there are biases of items."""
        return adapter_inputs(cast(LoRASettings, self.settings))

    def scope(self, name: str) -> Scope:
        """The scope of a factor, or of the head."""
        if name == "item_bias":
            return SHARED
        if name.startswith("head."):
            return _HEADS[cast(LoRASettings, self.settings).head]
        return self.factors[name.endswith(".b")]

    def lr_scale(self, name: str) -> float:
        """The items' biases have a rate of their own."""
        return cast(LoRASettings, self.settings).item_rate if name == "item_bias" else 1.0

    def build(self, foundation: Foundation | None, dataset: Dataset, seed: int, device: torch.device) -> AdaptedMLP:
        """Put one adapter around each layer."""
        settings = cast(LoRASettings, self.settings)
        return AdaptedMLP(settings, self.scope, self.needed(foundation), dataset, seed=seed, device=device)

    def build_wrapped(self, wrapped: Wrapped, dataset: Dataset, seed: int, device: torch.device) -> WrappedModel:
        """Put one adapter around each target."""
        settings = cast(LoRASettings, self.settings)
        return WrappedModel(settings, self.scope, wrapped, dataset, seed=seed, device=device)


@register
class FedIT(LoRAMethod):
    """One LoRA averaged by all."""

    name = "fedit"
    compared: ClassVar[Mapping[str, str]] = {"default": "FedIT"}
    factors = (SHARED, SHARED)


@register
class FFALoRA(LoRAMethod):
    """A frozen at its random start, B averaged by all."""

    name = "ffa-lora"
    compared: ClassVar[Mapping[str, str]] = {"default": "FFA-LoRA"}
    factors = (FROZEN, SHARED)


@register
class FedSALoRA(LoRAMethod):
    """A averaged by all, B personal."""

    name = "fedsa-lora"
    compared: ClassVar[Mapping[str, str]] = {"default": "FedSA-LoRA"}
    factors = (SHARED, PERSONAL)


@register
class PersonalLoRA(LoRAMethod):
    """A personal LoRA with a shared head."""

    name = "personal-lora"
    compared: ClassVar[Mapping[str, str]] = {"default": "personal LoRA, shared head"}
    factors = (PERSONAL, PERSONAL)
