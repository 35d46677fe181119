"""FedNCF: neural collaborative filtering whose item vectors and layers are averaged.

Perifanis and Efraimidis, *Federated Neural Collaborative Filtering*, Knowledge-Based Systems 242, 2022: the models of
He et al. (*Neural Collaborative Filtering*, WWW 2017), here NeuMF (their section 3.4): a product of vectors (GMF)
beside a perceptron (MLP), joined by a linear output. A device keeps its user vectors; item vectors and weights are
averaged. Departures: everything is averaged over all participants, whereas the paper's MF-SecAvg averages an item's
vector over those who updated it, which tells the server how many did (``item_rate`` makes up for it on average);
sums are exact and not masked; one width serves both halves; no pre-training of the halves; all users start from the
same vectors (see `ItemIdModel.user_vector`). ``table_mean=touched`` averages items as MF-SecAvg does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, cast

import torch
from pydantic import Field
from torch import Tensor

from fedpa.federation.parameters import PERSONAL, SHARED, Parameter, Scope, Table
from fedpa.methods.item_ids import ItemIdMethod, item_presets
from fedpa.methods.method import register
from fedpa.models.items import ItemIdModel, ItemSettings
from fedpa.models.products import rows_times, split_times

__all__ = ["FedNCF", "FedNCFSettings", "NeuMF"]


class FedNCFSettings(ItemSettings):
    """Settings of FedNCF.

    Attributes
    ----------
    hidden : sequence of int
        Widths of the perceptron's layers.
    """

    hidden: tuple[Annotated[int, Field(ge=1)], ...] = Field((16, 8), min_length=1)


class NeuMF(ItemIdModel):
    """A product of vectors beside a perceptron, joined by a linear output."""

    def parts(self) -> tuple[list[Table], list[Parameter]]:
        """Two item tables, two user vectors, the layers and the output, which starts at zero above a foundation."""
        width, hidden = self.settings.width, cast(FedNCFSettings, self.settings).hidden
        parameters = [self.user_vector("user.gmf", width), self.user_vector("user.mlp", width)]
        for layer, (into, out) in enumerate(zip((2 * width, *hidden), hidden, strict=False)):
            parameters += self.linear(f"layers.{layer}", into, out)
        parameters += self.linear("head", width + hidden[-1], 1, zero=self.settings.on_foundation)
        return [self.item_table("items.gmf"), self.item_table("items.mlp")], parameters

    def logits(self, blocks: Mapping[str, Tensor], rows: Mapping[str, Tensor]) -> Tensor:
        """NeuMF's output [users, rows]."""
        product = rows["items.gmf"] * blocks["user.gmf"]
        x = rows["items.mlp"]
        for layer in range(len(cast(FedNCFSettings, self.settings).hidden)):
            weight, bias = blocks[f"layers.{layer}.weight"], blocks[f"layers.{layer}.bias"][:, None, :]
            first = layer == 0
            x = torch.relu((split_times(blocks["user.mlp"], x, weight) if first else rows_times(x, weight)) + bias)
        joined = torch.cat([product, x], -1)
        return (rows_times(joined, blocks["head.weight"]) + blocks["head.bias"][:, None, :]).squeeze(-1)


@register
class FedNCF(ItemIdMethod):
    """Neural collaborative filtering: shared item vectors and layers, personal user vectors."""

    name = "fedncf"
    settings_type = FedNCFSettings
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = item_presets(
        {"hidden": (32, 16, 8)}, optimizer="sgd", lr=0.1, item_rate=6.0
    )
    compared: ClassVar[Mapping[str, str]] = {"default": "FedNCF", "foundation": "FedNCF + foundation"}
    model_type = NeuMF

    def scope(self, name: str) -> Scope:
        """User vectors are personal."""
        return PERSONAL if name.startswith("user.") else SHARED
