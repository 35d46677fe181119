"""A bias per item, averaged, and a bias per user, kept: the least that a federation can learn.

The frozen foundation's logit, plus ``b_i`` that all who touched item i average, plus ``b_u`` that user u keeps. There
is no adapter: what this reaches is what private users' clicks say of items, and how readily each of them clicks. An
adapter that shares item biases has to beat it, not the foundation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from fedpa.federation.parameters import FROZEN
from fedpa.methods.lora import STEPS, LoRAMethod
from fedpa.methods.method import Family, register

__all__ = ["Biases"]


@register
class Biases(LoRAMethod):
    """The frozen foundation, a shared bias per item and a personal bias per user."""

    name = "biases"
    family: ClassVar[Family] = "federated"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {
            **STEPS,
            "lora": False,
            "head": "frozen",
            "personal_bias": True,
            "item_bias": True,
            "item_rate": 10.0,
            "table_mean": "touched",
            "table_prior": 5.0,
        }
    }
    compared: ClassVar[Mapping[str, str]] = {"default": "item and user biases"}
    held: ClassVar[Mapping[str, tuple[str, ...]]] = {"default": ("personal_bias", "item_bias")}
    factors = (FROZEN, FROZEN)
