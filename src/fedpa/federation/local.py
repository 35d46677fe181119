"""Local training: all users of a chunk at once, each with its own copy of every trained weight."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor

from fedpa.federation.parameters import Layout
from fedpa.federation.rows import Batch
from fedpa.settings import Settings

__all__ = ["AdaptedModel", "LocalTrainer", "click_loss"]


class AdaptedModel(Protocol):
    """A foundation with adapters, as a function of its parameters."""

    layout: Layout

    def forward(self, blocks: Mapping[str, Tensor], batch: Batch) -> tuple[Tensor, list[Tensor]]:
        """Click logits [users, rows] from blocks [users, *block.shape].

        Second, what explains a score: per gated layer the branch weights [users, rows, branches]; may be empty.
        """
        ...


Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


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


class LocalTrainer:
    """Trains the users of one chunk after another in the same buffers.

    Parameters
    ----------
    model : AdaptedModel
    loss : callable
        From (logits, labels, weights), each [users, rows], to a loss per user.
    settings : Settings
        Learning rate, optimiser and its constants.
    users : int
        Most users of a chunk.

    Attributes
    ----------
    weights : Tensor
        The users' flat parameters [users, size]: fill it, then call `step` for every batch.
    change : Tensor
        After `step`: by how much each weight has moved since `start`, [users, size].
    room : Tensor
        Working memory for one scope of the users' uploads, float64 [users x size].
    """

    def __init__(self, model: AdaptedModel, loss: Loss, settings: Settings, users: int, device: torch.device) -> None:
        self.model = model
        self.loss = loss
        self.settings = settings
        size = (users, model.layout.size)
        dtype = settings.torch_dtype
        self.weights = torch.empty(size, dtype=dtype, device=device)
        self.change = torch.empty_like(self.weights)
        self.room = torch.empty(users * model.layout.largest_upload, dtype=torch.float64, device=device)
        self._work = torch.empty_like(self.weights)
        self._moments: tuple[Tensor, Tensor] | None = None
        self._done = 0

    def start(self) -> None:
        """Forget the optimiser: the next `step` is the first of a round."""
        self._done = 0

    def step(self, batch: Batch, labels: Tensor, row_weights: Tensor, *, last: bool) -> Tensor:
        """One gradient step of every user in the chunk.

        Parameters
        ----------
        batch : Batch
        labels, row_weights : Tensor
            [users, rows].
        last : bool
            No further step follows, so `weights` need not be moved.

        Returns
        -------
        Tensor
            Loss per user before the step [users].
        """
        users = len(labels)
        first = self._done == 0
        gradient = (self.change if first and last else self._work)[:users]
        losses = self._differentiate(batch, labels, row_weights, gradient)
        self._done += 1
        if first and last:
            self._only_step(gradient)
            return losses
        update = self._update(gradient, users)
        if first:
            self.change[:users] = update
        else:
            self.change[:users] += update
        if not last:
            self.weights[:users] += update
        return losses

    def _differentiate(self, batch: Batch, labels: Tensor, row_weights: Tensor, gradient: Tensor) -> Tensor:
        """Losses [users]; their gradients go into flat vectors [users, size]."""
        views = self.model.layout.views
        blocks = {n: view.detach().requires_grad_() for n, view in views(self.weights[: len(labels)]).items()}
        places = views(gradient)
        for name, block in blocks.items():
            block.main_grad = places[name]  # type: ignore[attr-defined]
        losses = self.loss(self.model.forward(blocks, batch)[0], labels, row_weights)
        found = torch.autograd.grad(losses.sum(), list(blocks.values()), allow_unused=True)
        for place, value in zip(places.values(), found, strict=True):
            if value is None:
                place.zero_()
            elif value.data_ptr() != place.data_ptr():
                place.copy_(value)
        return losses.detach()

    def _only_step(self, gradient: Tensor) -> None:
        """Turn the gradient into the single step of a fresh optimiser, in place; Adam's is lr g / (|g| + eps)."""
        if self.settings.optimizer == "adam":
            scale = torch.abs(gradient, out=self._work[: len(gradient)]).add_(self.settings.adam_eps)
            gradient.div_(scale)
        gradient.mul_(-self.settings.lr)

    def _update(self, gradient: Tensor, users: int) -> Tensor:
        """The step of Kingma & Ba (2015), algorithm 1, or of plain gradient descent."""
        settings = self.settings
        if settings.optimizer == "sgd":
            return gradient * -settings.lr
        if self._moments is None:
            self._moments = torch.empty_like(self.weights), torch.empty_like(self.weights)
        mean, square = self._moments[0][:users], self._moments[1][:users]
        if self._done == 1:
            mean.zero_()
            square.zero_()
        beta1, beta2 = settings.adam_betas
        mean.lerp_(gradient, 1 - beta1)
        square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        scale = (square / (1 - beta2**self._done)).sqrt_().add_(settings.adam_eps)
        return (mean / scale).mul_(-settings.lr / (1 - beta1**self._done))
