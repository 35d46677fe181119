"""Local training: all users of a chunk at once, each with its own copy of every trained weight."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from fedpa.federation.rows import Batch
from fedpa.federation.rule import AdaptedModel, LocalRule, LocalStep, Names
from fedpa.settings import Settings

__all__ = ["LocalTrainer"]


class LocalTrainer:
    """Trains the users of one chunk after another in the same buffers.

    Parameters
    ----------
    model : AdaptedModel
    rule : LocalRule
        Loss, rates and what moves.
    settings : Settings
        Learning rate, optimiser and its constants.
    users : int
        Most users of a chunk.

    Attributes
    ----------
    weights : Tensor
        The users' flat parameters [users, width]: fill it, then call `start`, then `step` for every batch.
    change : Tensor
        After `step`: by how much each weight has moved since `start`, [users, width].
    moments : tuple of Tensor
        Adam's two moments [users, width] where the device keeps them.
    rounds : Tensor
        How many rounds they have seen before this one [users, 1].
    room : Tensor
        Working memory for one scope of the users' uploads, float64 [users x size].
    """

    def __init__(
        self, model: AdaptedModel, rule: LocalRule, settings: Settings, users: int, device: torch.device
    ) -> None:
        self.model = model
        self.rule = rule
        self.settings = settings
        self.device = device
        self.room = torch.empty(users * model.layout.largest_upload, dtype=torch.float64, device=device)
        self._memory: dict[str, Tensor] = {}
        self._rows: dict[tuple[object, ...], Tensor] = {}
        self._moving: dict[object, frozenset[str]] = {}
        self._still = frozenset(n for n, scope in model.layout.scopes.items() if scope.kind == "frozen")
        names = model.layout.scopes
        self._scaled = bool(self._still) or any(rule.lr_scale(name) != 1.0 for name in names)
        self.fit(users, [1] * len(model.layout.tables))

    def fit(self, users: int, lengths: Sequence[int]) -> None:
        """Make room for some users with so many touched rows of each table."""
        self.lengths = tuple(lengths)
        width = self.model.layout.width(lengths)
        self.weights, self.change, self._work = (self._room(n, users, width) for n in ("weights", "change", "work"))

    def start(
        self,
        number: int = 1,
        *,
        received: Mapping[str, Tensor] | None = None,
        distance: Tensor | None = None,
        rows: Tensor | None = None,
        batches: int = 1,
    ) -> None:
        """The next `step` is the first of a round.

        Parameters
        ----------
        number : int
            Of the round.
        received : dict, optional
            See `LocalStep.received`.
        distance : Tensor, optional
            How far each weight is from its start [users, width], for the decay of personal parameters.
        rows : Tensor, optional
            Training rows of each user [users, 1], for the same.
        batches : int
            In an epoch, equally many in every round: so the steps of earlier rounds need not be counted.
        """
        self._number, self._received, self._distance, self._count = number, received or {}, distance, rows
        self._batches = batches
        self._done = 0
        self._counts: dict[object, int] = {}
        self._start: dict[str, Tensor] = {}
        if self.rule.needs_start:
            self._start = self.model.layout.views(self.weights.clone(), self.lengths)
        if self.settings.keep_optimizer:
            users, width = self.weights.shape
            self.moments = self._room("mean", users, width), self._room("square", users, width)
            self.rounds = self._room("rounds", users, 1)
            for kept in (*self.moments, self.rounds):  # before scoring nobody loads what the device kept
                kept.zero_()

    def start_phase(self) -> None:
        """Forget the optimiser, unless the device keeps it."""
        if not self.settings.keep_optimizer:
            self._counts = {}

    def step(
        self, batch: Batch, labels: Tensor, row_weights: Tensor, *, last: bool, turn: Names | None = None
    ) -> Tensor:
        """One gradient step of every user in the chunk.

        Parameters
        ----------
        batch : Batch
        labels, row_weights : Tensor
            [users, rows].
        last : bool
            No further step follows, so `weights` need not be moved.
        turn : callable, optional
            From a parameter's name to whether it moves.

        Returns
        -------
        Tensor
            Loss per user before the step [users].
        """
        users = len(labels)
        first = self._done == 0
        alone = first and last and not self.settings.keep_optimizer
        gradient = (self.change if alone else self._work)[:users]
        losses = self._differentiate(batch, labels, row_weights, gradient, turn)
        if self.settings.proximal and not first:
            near = self._row("near", lambda name: self.settings.proximal * (self._kind(name) in _SENT))
            gradient.addcmul_(self.change[:users], near)
        self._done += 1
        rates = self._rates(turn)
        if alone:
            self._only_step(gradient, rates)
            self._shrink(gradient, first, rates)
            return losses
        update = self._update(gradient, users, turn)
        if rates is not None:
            update *= rates
        self._shrink(update, first, rates)
        if first:
            self.change[:users] = update
        else:
            self.change[:users] += update
        if not last:
            self.weights[:users] += update
        return losses

    def _differentiate(
        self, batch: Batch, labels: Tensor, row_weights: Tensor, gradient: Tensor, turn: Names | None
    ) -> Tensor:
        """Losses [users]; their gradients go into flat vectors [users, width]."""
        layout = self.model.layout
        moving = self._blocks(turn)
        blocks, places = layout.views(self.weights[: len(labels)], self.lengths), layout.views(gradient, self.lengths)
        blocks = {name: view.detach() for name, view in blocks.items()}
        for name in moving:
            blocks[name].requires_grad_().main_grad = places[name]  # type: ignore[attr-defined]
        local = LocalStep(blocks, self._start, self._received, batch, labels, row_weights, self._number)
        losses = self.rule.local_loss(self.model, local)
        learned = [name for name in blocks if name in moving]
        found = torch.autograd.grad(losses.sum(), [blocks[name] for name in learned], allow_unused=True)
        values = dict(zip(learned, found, strict=True))
        for name, place in places.items():
            value = values.get(name)
            if value is None:
                place.zero_()
            elif value.data_ptr() != place.data_ptr():
                place.copy_(value)
        return losses.detach()

    def _shrink(self, update: Tensor, first: bool, rates: Tensor | None) -> None:
        """Draw what is personal to its start after a step, by the implicit step of its prior's gradient.

        Explicit, the step would overshoot where ``lr lambda / rows`` is above two; implicit, it never does.
        """
        settings, users = self.settings, len(update)
        if not settings.personal_decay or self._distance is None or self._count is None:
            return
        strength = settings.lr * settings.personal_decay
        prior = self._row("prior", lambda name: strength * (self._kind(name) == "personal"))
        pull, gone, more = (self._room(name, *self.weights.shape)[:users] for name in ("pull", "gone", "more"))
        torch.div(prior if rates is None else prior * rates, self._count[:users], out=pull)
        torch.add(self._distance[:users], update, out=gone)
        if not first:
            gone += self.change[:users]
        update.addcmul_(gone, pull.div_(torch.add(pull, 1, out=more)), value=-1)

    def _kind(self, name: str) -> str:
        return self.model.layout.scopes[name].kind

    def _only_step(self, gradient: Tensor, rates: Tensor | None) -> None:
        """Turn the gradient into the single step of a fresh optimiser, in place; Adam's is lr g / (|g| + eps)."""
        if self.settings.optimizer == "adam":
            scale = torch.abs(gradient, out=self._work[: len(gradient)]).add_(self.settings.adam_eps)
            gradient.div_(scale)
        gradient.mul_(-self.settings.lr)
        if rates is not None:
            gradient.mul_(rates)

    def _update(self, gradient: Tensor, users: int, turn: Names | None) -> Tensor:
        """The step of Kingma & Ba (2015), algorithm 1, or of plain gradient descent, in the gradient's place."""
        settings = self.settings
        if settings.optimizer == "sgd":
            return gradient.mul_(-settings.lr)
        self._counts[turn] = self._counts.get(turn, 0) + 1
        done: int | Tensor = self._counts[turn]
        if settings.keep_optimizer:
            mean, square = self.moments[0][:users], self.moments[1][:users]
            epochs = sum(phase.epochs for phase in self.rule.phases(settings) if turn in phase.turns)
            done = self.rounds[:users] * (epochs * self._batches) + done
        else:
            mean, square = (self._room(name, len(self.weights), self.weights.shape[1])[:users] for name in _MOMENTS)
            if len(self._counts) == 1 and done == 1:
                mean.zero_()
                square.zero_()
        beta1, beta2 = settings.adam_betas
        if turn is None:
            mean.lerp_(gradient, 1 - beta1)
            square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        else:  # what has no turn keeps its moments
            moves = self._row(turn, lambda name: float(turn(name)))
            mean.addcmul_(gradient - mean, moves, value=1 - beta1)
            square.addcmul_(gradient * gradient - square, moves, value=1 - beta2)
        scale = self._room("more", *self.weights.shape)[:users]
        torch.div(square, 1 - beta2**done, out=scale).sqrt_().add_(settings.adam_eps)
        return torch.div(mean, scale, out=gradient).mul_(-settings.lr / (1 - beta1**done))

    def _rates(self, turn: Names | None) -> Tensor | None:
        """Factor on the step of every weight [width]; None where all are one."""
        if turn is None and not self._scaled:
            return None

        def rate(name: str) -> float:
            moves = name not in self._still and (turn is None or turn(name))
            return self.rule.lr_scale(name) if moves else 0.0

        return self._row(("rate", turn), rate)

    def _blocks(self, turn: Names | None) -> frozenset[str]:
        """Names of the blocks of which anything moves."""
        if turn not in self._moving:
            layout = self.model.layout
            members = {block.name: [p.name for p in block.parameters] for block in layout.blocks}
            members |= {table.name: [table.name] for table in layout.tables}
            self._moving[turn] = frozenset(
                block
                for block, names in members.items()
                if any(name not in self._still and (turn is None or turn(name)) for name in names)
            )
        return self._moving[turn]

    def _row(self, key: object, value: Callable[[str], float]) -> Tensor:
        """`Layout.row`, made once for each length of the tables."""
        full = (key, self.lengths)
        if full not in self._rows:
            if len(self._rows) >= _MOST_ROWS:
                self._rows.clear()
            row = self.model.layout.row(value, self.lengths)
            self._rows[full] = row.to(self.device, self.settings.torch_dtype)
        return self._rows[full]

    def _room(self, name: str, users: int, width: int) -> Tensor:
        """A matrix in memory that is used again."""
        found = self._memory.get(name)
        if found is None or found.numel() < users * width:
            found = torch.empty(users * width, dtype=self.settings.torch_dtype, device=self.device)
            self._memory[name] = found
        return found[: users * width].view(users, width)


_MOMENTS = ("mean", "square")
_SENT = ("shared", "group")
_MOST_ROWS = 256
