"""Adaptation on the device alone, with nothing to upload: the yardsticks that a federation has to beat.

`LocalOnly` has FedPA's parts but for what only several users can have (group-level parts, item biases) and shares
none: a method whose result it reaches learnt nothing from others, and a result that only sharing can explain, on data
where nothing is shared, is a leak.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from fedpa.federation.parameters import FROZEN, PERSONAL, Scope
from fedpa.methods.fedpa import BEST, FedPA
from fedpa.methods.lora import STEPS, LoRAMethod
from fedpa.methods.method import Family, register

__all__ = ["HeadOnly", "LocalOnly", "UserBias"]

_NOTHING: Mapping[str, Any] = {**STEPS, "lora": False}


@register
class UserBias(LoRAMethod):
    """The frozen foundation and one term of the logit per user, learnt on the device."""

    name = "user-bias"
    family: ClassVar[Family] = "device"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {**_NOTHING, "head": "frozen", "personal_bias": True}
    }
    compared: ClassVar[Mapping[str, str]] = {"default": "user bias only"}
    held: ClassVar[Mapping[str, tuple[str, ...]]] = {"default": ("personal_bias", "item_bias")}
    factors = (FROZEN, FROZEN)


@register
class HeadOnly(LoRAMethod):
    """The frozen foundation and an output head per user, learnt on the device."""

    name = "head-only"
    family: ClassVar[Family] = "device"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"default": {**_NOTHING, "head": "personal"}}
    compared: ClassVar[Mapping[str, str]] = {"default": "head only"}
    held: ClassVar[Mapping[str, tuple[str, ...]]] = {"default": ("item_bias",)}
    factors = (FROZEN, FROZEN)


@register
class LocalOnly(FedPA):
    """FedPA's adapters, gates and head, all of them personal."""

    name = "local-only"
    family: ClassVar[Family] = "device"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {**BEST, "groups": (), "item_bias": False, "item_counts": 0}
    }
    compared: ClassVar[Mapping[str, str]] = {"default": "local-only adapters"}
    held: ClassVar[Mapping[str, tuple[str, ...]]] = {"default": ("item_bias",)}
    follows: ClassVar[Mapping[str, str]] = {}

    def scope(self, name: str) -> Scope:
        """Everything is personal."""
        return PERSONAL
