"""How a device trains: the hooks that a method may override."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from fedpa.federation.parameters import Layout
from fedpa.federation.rows import Batch
from fedpa.settings import Settings

__all__ = ["AdaptedModel", "LocalRule", "LocalStep", "Phase", "WithLoss", "click_loss", "scored"]

Names = Callable[[str], bool]


class AdaptedModel(Protocol):
    """A foundation with adapters, or any other recommender, as a function of its parameters."""

    layout: Layout

    def forward(self, blocks: Mapping[str, Tensor], batch: Batch) -> tuple[Tensor, list[Tensor]]:
        """Click logits [users, rows], or of several labels [users, rows, labels], from blocks [users, *block.shape].

        Second, what explains a score: per gated layer the branch weights [users, rows, branches]; may be empty.
        """
        ...


@runtime_checkable
class WithLoss(Protocol):
    """A model that brings its own loss, which then takes the place of `LocalRule.loss`."""

    def loss(self, logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        """Loss per user [users] of logits and labels [users, rows] or [users, rows, labels]."""
        ...


def scored(logits: Tensor) -> Tensor:
    """The logits that rows are scored by [users, rows]: of several labels the first."""
    return logits if logits.dim() == 2 else logits[..., 0]


@dataclass(frozen=True)
class Phase:
    """A part of a device's round.

    Attributes
    ----------
    epochs : int
        Passes over the rows.
    turns : tuple of callables
        From a parameter's name to whether it moves; for every batch there is one step per turn. By default one turn
        that moves everything.
    rows : {"all", "support", "query"}
        Which of the user's training rows; support and query are halves drawn anew in every round.
    """

    epochs: int
    turns: tuple[Names | None, ...] = (None,)
    rows: Literal["all", "support", "query"] = "all"


@dataclass(frozen=True)
class LocalStep:
    """What a local loss may read.

    Attributes
    ----------
    blocks : dict
        The users' parameters [users, *block.shape], and the touched rows of tables [users, touched, width].
    start : dict
        The same at the beginning of the round: what was downloaded, and what the device kept. Only where the rule
        says `needs_start`, else empty.
    received : dict
        By table what the server sent to this very user beside the shared state, as a difference to it
        [users, touched, width]; only where the server has a downlink of its own.
    batch : Batch
    labels, weights : Tensor
        [users, rows], of several labels [users, rows, labels]; the weights [users, rows] of one user's rows sum to one,
        padding has weight zero.
    round : int
        From 1.
    """

    blocks: Mapping[str, Tensor]
    start: Mapping[str, Tensor]
    received: Mapping[str, Tensor]
    batch: Batch
    labels: Tensor
    weights: Tensor
    round: int = field(default=1)


def click_loss(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Weighted binary cross-entropy per user.

    Parameters
    ----------
    logits, labels, weights : Tensor
        [users, rows]; the weights of one user's rows sum to one, padding has weight zero.

    Returns
    -------
    Tensor
        [users].
    """
    losses = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    return (losses * weights).sum(1)


class LocalRule:
    """Plain local training; a method overrides what differs."""

    needs_start: bool = False
    forgets_personal: bool = False
    """Whether personal parameters are made anew in every round instead of being kept."""

    def phases(self, settings: Settings) -> tuple[Phase, ...]:
        """What a participant does in a round."""
        return (Phase(settings.epochs),)

    def before_scoring(self, settings: Settings) -> tuple[Phase, ...]:
        """What a device does on its training rows before it scores; nothing of it is kept or sent."""
        return ()

    def lr_scale(self, name: str) -> float:
        """Factor on the learning rate of a parameter."""
        return 1.0

    def loss(self, logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        """Loss per user [users] of logits; see `click_loss`."""
        return click_loss(logits, labels, weights)

    def local_loss(self, model: AdaptedModel, step: LocalStep) -> Tensor:
        """Loss per user [users] of a step; by default `loss` of the model's logits, or the model's own."""
        loss = model.loss if isinstance(model, WithLoss) else self.loss
        return loss(model.forward(step.blocks, step.batch)[0], step.labels, step.weights)
