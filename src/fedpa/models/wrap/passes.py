"""A forward pass of a module with the adapters of some users, by hooks that exist for as long as it runs."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fedpa.errors import FedpaError
from fedpa.models.branches import Branches
from fedpa.models.products import rows_times
from fedpa.models.wrap.targets import layer_name

__all__ = ["Hooks", "Pass", "head_name"]


def head_name(layer: str) -> str:
    """The prefix of the parameters of a layer that is itself trained."""
    return f"head.{layer.replace('.', '/')}"


class Pass:
    """One forward pass for some users with equally many rows each.

    Parameters
    ----------
    branches : Branches
    blocks : mapping
        The users' parameters [users, *shape].
    users : int
    rows : int or None
        Rows of all users together; None where the pass is one user's own, whose inputs may have any shape.
    """

    def __init__(self, branches: Branches, blocks: Mapping[str, Tensor], users: int, rows: int | None) -> None:
        self._branches, self._blocks, self._users, self._rows = branches, blocks, users, rows
        self.ran: set[str] = set()
        self._gates: dict[str, list[Tensor]] = {}

    def adapted(self, target: str, x: Tensor, frozen: Tensor) -> Tensor:
        """The output of a target with its branches."""
        self.ran.add(target)
        layer = layer_name(target)
        if not self._branches.loras:
            return frozen
        down = rows_times(self._by_user(target, x), self._blocks[f"{layer}.down"])
        outputs = frozen.reshape(self._users, -1, frozen.shape[-1])
        mixed, gate = self._branches.mix(layer, self._blocks, down, outputs)
        if gate is not None:
            self._gates.setdefault(target, []).append(gate)
        return mixed.reshape(frozen.shape)

    def trained(self, layer: str, x: Tensor, frozen: Tensor) -> Tensor:
        """The output of a layer with each user's own weights."""
        self.ran.add(layer)
        name = head_name(layer)
        found = rows_times(self._by_user(layer, x), self._blocks[f"{name}.weight"])
        if f"{name}.bias" in self._blocks:
            found = found + self._blocks[f"{name}.bias"][:, None, :]
        return found.reshape(frozen.shape)

    def gates(self, targets: Sequence[str], rows: int) -> list[Tensor]:
        """Per target its mean branch weights over positions and calls [users, rows of each, branches]."""
        found = []
        for target in targets:
            calls = [
                gate.reshape(self._users, rows, -1, gate.shape[-1]).mean(2)
                if self._rows is not None
                else gate.mean(1, keepdim=True).expand(-1, rows, -1)
                for gate in self._gates.get(target, [])
            ]
            if calls:
                found.append(torch.stack(calls).mean(0))
        return found

    def _by_user(self, layer: str, x: Tensor) -> Tensor:
        """A layer's input as [users, positions, in]; the first dimension is rows, or rows times something."""
        if self._rows is not None and (x.dim() < 2 or x.shape[0] % self._rows):
            raise FedpaError(
                f"layer {layer!r}: its input {list(x.shape)} does not begin with the {self._rows} rows of the batch",
                'leave it out of the targets, or wrap(..., engine="loop")',
            )
        return x.reshape(self._users, -1, x.shape[-1])


class Hooks:
    """Puts the adapters of the running pass around a module's layers; a module that runs without a pass is itself.

    Passes may run side by side, one per thread.

    Parameters
    ----------
    module : Module
    targets, trained : sequence of str
    """

    def __init__(self, module: nn.Module, targets: Sequence[str], trained: Sequence[str]) -> None:
        self._module = module
        self._layers = (*targets, *trained)
        self._hooks: list[tuple[str, Callable[..., Tensor]]] = [(n, Pass.adapted) for n in targets]
        self._hooks += [(n, Pass.trained) for n in trained]
        self._local = threading.local()
        self._lock = threading.Lock()
        self._running = 0
        self._handles: list[Any] = []

    @contextlib.contextmanager
    def running(self, one: Pass) -> Iterator[None]:
        """What the module computes in this thread until the block ends is of this pass.

        Raises
        ------
        FedpaError
            If a layer did not run: its adapters would do nothing.
        """
        with self._lock:
            if self._running == 0:
                self._handles = [self._hooked(name, method) for name, method in self._hooks]
            self._running += 1
        self._local.current = one
        try:
            yield
        finally:
            self._local.current = None
            with self._lock:
                self._running -= 1
                if self._running == 0:
                    for handle in self._handles:
                        handle.remove()
        idle = [name for name in self._layers if name not in one.ran]
        if idle:
            raise FedpaError(
                f"layer {idle[0]!r}: did not run in this forward pass, so that its adapters do nothing",
                "leave it out of the targets, or have the module call it for every batch",
            )

    def _hooked(self, name: str, method: Callable[..., Tensor]) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor | None:
            one: Pass | None = getattr(self._local, "current", None)
            if one is None:
                return None
            return method(one, name, args[0] if args else kwargs["input"], output)

        return self._module.get_submodule(name).register_forward_hook(hook, with_kwargs=True)
