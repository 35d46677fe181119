"""Runs a module as it is, or with the adapters of many users at once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from fedpa.errors import ConfigError
from fedpa.models.branches import Branches
from fedpa.models.wrap.distinct import Distinct
from fedpa.models.wrap.passes import Hooks, Pass
from fedpa.models.wrap.rows import Rows

__all__ = ["Forward"]


class Forward:
    """A module's forward pass, in flat rows or user by user.

    Parameters
    ----------
    module : Module
    targets, trained : sequence of str
        Layers that get adapters, and layers that are trained themselves.
    labels : int
        Logits per row.
    loop : bool
        Run one user after another, so that the rows of two users never meet.

    Attributes
    ----------
    distinct : Distinct or None
        What is computed once per distinct input; a check finds it.
    """

    def __init__(
        self, module: nn.Module, targets: Sequence[str], trained: Sequence[str], labels: int, *, loop: bool
    ) -> None:
        self.module, self.targets, self.trained = module, tuple(targets), tuple(trained)
        self.labels, self.loop = labels, loop
        self.distinct: Distinct | None = None
        self._hooks = Hooks(module, targets, trained)

    def plain(self, rows: Rows) -> Tensor:
        """Logits of the module without adapters [rows], or [rows, labels]."""
        with self._frozen(len(rows)):
            return self._logits(rows)

    def adapted(
        self, branches: Branches, blocks: Mapping[str, Tensor], rows: Rows, users: int, real: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Logits with adapters, and what the gates said.

        Parameters
        ----------
        branches : Branches
        blocks : mapping
            [users, *shape].
        rows : Rows
            Equally many of each user, user after user.
        users : int
        real : Tensor, optional
            How many of each user's rows are not copies that fill it up [users]; only the loop leaves those out.

        Returns
        -------
        logits : Tensor
            [users, rows], or [users, rows, labels].
        gates : list of Tensor
            Per target [users, rows, branches].
        """
        each = len(rows) // users
        if not self.loop:
            one = Pass(branches, blocks, users, len(rows))
            with self._hooks.running(one), self._frozen(len(rows)):
                logits = self._logits(rows)
            return logits.unflatten(0, (users, each)), one.gates(self.targets, each)
        found, weights = [], []
        for user in range(users):
            count = each if real is None else int(real[user])
            mine = rows.take(slice(user * each, user * each + count))
            one = Pass(branches, {name: block[user : user + 1] for name, block in blocks.items()}, 1, None)
            with self._hooks.running(one), self._frozen(count):
                logits = self._logits(mine)
            found.append(torch.cat([logits, logits[-1:].expand(each - count, *logits.shape[1:])]))
            weights.append(one.gates(self.targets, each))
        return torch.stack(found), [torch.cat(users_) for users_ in zip(*weights, strict=True)]

    def _logits(self, rows: Rows) -> Tensor:
        found = self.module(rows)
        if not isinstance(found, Tensor):
            raise ConfigError(
                f"{type(self.module).__name__}: its forward returns {type(found).__name__}, expected a tensor of logits"
            )
        if self.labels == 1 and found.dim() == 2 and found.shape[1] == 1:
            found = found.squeeze(1)
        expected = (len(rows),) if self.labels == 1 else (len(rows), self.labels)
        if tuple(found.shape) != expected:
            raise ConfigError(
                f"{type(self.module).__name__}: its forward returns logits {list(found.shape)} for {len(rows)} rows, "
                f"expected {list(expected)}",
                "name the labels of several logits: wrap(..., labels=(...))" if found.dim() == 2 else None,
            )
        return found

    @contextlib.contextmanager
    def _frozen(self, rows: int) -> Iterator[None]:
        if self.distinct is None:
            yield
        else:
            with self.distinct.running(rows):
                yield
