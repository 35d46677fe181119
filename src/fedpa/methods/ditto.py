"""Ditto: a global model, and beside it a personal one that is held close to it.

Li et al., *Ditto: Fair and Robust Federated Learning Through Personalization*, ICML 2021, algorithm 1: a device
trains the global model w as in FedAvg, and its own v on ``F(v) + lambda / 2 |v - w|^2`` with the downloaded w
(equation 2); it scores with v. Departures: both take the same number of local steps, since both losses are one sum;
the local optimiser may be Adam; rows of embedding tables that a device never trained stay at the start of v, where
the published v would follow w. A user who never took part scores with the start of v. The reported loss is F of both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, cast

import torch
from pydantic import Field
from torch import Tensor

from fedpa.data.dataset import Dataset
from fedpa.federation.parameters import PERSONAL, SHARED, Layout, Scope
from fedpa.federation.rows import Batch, group_sizes
from fedpa.federation.rule import AdaptedModel, LocalStep
from fedpa.methods.method import register
from fedpa.methods.whole_model import WholeModelMethod
from fedpa.models.foundation import Foundation
from fedpa.models.whole import WholeMLP, WholeSettings

__all__ = ["Ditto", "DittoSettings"]

_GLOBAL, _OWN = "global.", "own."


class DittoSettings(WholeSettings):
    """Settings of Ditto.

    Attributes
    ----------
    closeness : float
        lambda, how close the personal model is held to the global one.
    """

    closeness: Annotated[float, Field(ge=0)] = 0.1


class _TwoModels:
    """The global model and a personal one from the same start; scores with the personal one."""

    def __init__(self, models: tuple[WholeMLP, WholeMLP], method: Ditto, dataset: Dataset) -> None:
        self.shared, self.own = models
        blocks = [block for model in models for block in model.blocks]
        tables = [table for model in models for table in model.tables]
        self.layout = Layout(blocks, method.scope, group_sizes(dataset), tables)

    def forward(self, blocks: Mapping[str, Tensor], batch: Batch) -> tuple[Tensor, list[Tensor]]:
        """Logits of the personal model."""
        return self.own.forward(blocks, batch)


@register
class Ditto(WholeModelMethod):
    """A global model, and a personal one held close to it."""

    name = "ditto"
    settings_type = DittoSettings
    compared: ClassVar[Mapping[str, str]] = {"default": "Ditto", "foundation": "Ditto + foundation"}
    needs_start = True

    def scope(self, name: str) -> Scope:
        """The global model is shared, the other one personal."""
        return SHARED if name.startswith(_GLOBAL) else PERSONAL

    def build(self, foundation: Foundation | None, dataset: Dataset, seed: int, device: torch.device) -> AdaptedModel:
        """Two backbones from the same start."""
        start = self.needed(foundation) if self.reads_foundation else None
        settings = cast(DittoSettings, self.settings)
        shared, own = (
            WholeMLP(settings, self.scope, start, dataset, seed=seed, device=device, prefix=prefix)
            for prefix in (_GLOBAL, _OWN)
        )
        return _TwoModels((shared, own), self, dataset)

    def local_loss(self, model: AdaptedModel, step: LocalStep) -> Tensor:
        """Both models' losses and the pull of the personal one to the downloaded global one."""
        two = cast(_TwoModels, getattr(model, "model", model))
        own = self.loss(model.forward(step.blocks, step.batch)[0], step.labels, step.weights)
        shared = self.loss(two.shared.forward(step.blocks, step.batch)[0], step.labels, step.weights)
        strength = cast(DittoSettings, self.settings).closeness
        pull = torch.zeros_like(own)
        for name, block in step.blocks.items():
            if name.startswith(_OWN):
                towards = step.start[_GLOBAL + name.removeprefix(_OWN)]
                pull = pull + strength / 2 * (block - towards).square().flatten(1).sum(1)
        # Its gradient alone: its value covers the padding of tables, which depends on who is computed together.
        return own + shared + (pull - pull.detach())
