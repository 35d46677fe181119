"""Tries a module on a few rows and names what cannot work, before anything is trained."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from fedpa.draws import generator
from fedpa.errors import ConfigError, FedpaError
from fedpa.models.adapted import AdapterSettings
from fedpa.models.branches import Branches
from fedpa.models.wrap.distinct import Distinct
from fedpa.models.wrap.forward import Forward
from fedpa.models.wrap.passes import head_name
from fedpa.models.wrap.rows import Rows
from fedpa.models.wrap.search import frozen_parts
from fedpa.models.wrap.targets import layer_name, linear_of
from fedpa.models.wrap.trace import Call, close, traced

__all__ = ["check"]

Loss = Callable[[Tensor, Tensor], Tensor]
_LOOP = 'wrap(..., engine="loop") runs one user after another'
_USERS = 3


def check(forward: Forward, loss: Loss, rows: Rows, most_bytes: int) -> None:
    """Try a module; on success its frozen parts are computed once per distinct input from then on.

    Parameters
    ----------
    forward : Forward
    loss : callable
        From logits and labels to each row's loss.
    rows : Rows
        Six at least.
    most_bytes : int
        Of results kept across chunks and rounds.

    Raises
    ------
    ConfigError
        Names everything that was found.
    """
    if len(rows) < 2 * _USERS:
        raise ConfigError(f"a check needs {2 * _USERS} rows at least, found {len(rows)}")
    forward.distinct = None
    trial = _Trial(forward, loss, rows.take(slice(0, len(rows) - len(rows) % (2 * _USERS))))
    for step in (trial.mode, trial.bypassed, trial.state, trial.together, trial.use, trial.users, trial.losses):
        step()
        if trial.problems:
            name = type(forward.module).__name__
            raise ConfigError(f"{name} cannot be adapted as it is: " + "; ".join(trial.problems))
    forward.distinct = trial.distinct(most_bytes)


class _Trial:
    def __init__(self, forward: Forward, loss: Loss, rows: Rows) -> None:
        self.forward, self.module, self.loss, self.rows = forward, forward.module, loss, rows
        self.half = rows.take(slice(0, len(rows) // 2))
        self.problems: list[str] = []
        parameter = next(self.module.parameters())
        self.dtype, self.device = parameter.dtype, parameter.device
        count = len(forward.targets)
        settings = AdapterSettings(
            rank=2,
            gate_hidden=(4,) * count,
            groups=(),
            personal_embedding=False,
            dtype="float64" if self.dtype == torch.float64 else "float32",
        )
        self.branches = Branches(settings, (), seed=0, device=self.device)

    def mode(self) -> None:
        """Nothing is in training mode, where dropout draws and batch norms count."""
        for name, layer in self.module.named_modules():
            if layer.training and isinstance(layer, (_NormBase, nn.modules.dropout._DropoutNd)):
                self.problems.append(f"{name!r} ({type(layer).__name__}) is in training mode: call eval()")

    def bypassed(self) -> None:
        """No target belongs to a layer that reads its weights without calling it."""
        for name in (*self.forward.targets, *self.forward.trained):
            parent = self.module.get_submodule(name.rpartition(".")[0])
            if isinstance(parent, nn.MultiheadAttention):
                self.problems.append(
                    f"{name!r}: nn.MultiheadAttention reads its weight without calling it, so that an adapter would do "
                    "nothing; name another layer, or write the attention with linear layers of its own"
                )

    def state(self) -> None:
        """Equal runs give equal logits and leave nothing behind."""
        with self._explained("its forward"), torch.no_grad():
            self.forward.plain(self.rows)  # what is filled at first use is filled now
            before = _state(self.module)
            one, other = self.forward.plain(self.rows), self.forward.plain(self.rows)
            changed = [key for key, value in _state(self.module).items() if before.get(key) != value]
            if changed:
                owner, name = changed[0]
                where = f" of {owner!r}" if owner else ""
                self.problems.append(
                    f"in-place state: a forward pass changes {name!r}{where}, which all users would share"
                )
            elif not torch.equal(one, other):
                self.problems.append("two equal forward passes differ: it draws random numbers or keeps some state")
            elif not one.isfinite().all():
                self.problems.append("its logits are not finite")

    def together(self) -> None:
        """A row's logit does not depend on the rows beside it."""
        with torch.no_grad(), self._explained("its forward"):
            with traced(self.module) as self.whole:
                logits = self.forward.plain(self.rows)
            with traced(self.module) as self.part:
                fewer = self.forward.plain(self.half)
        if self.forward.loop or close(logits[: len(fewer)], fewer):
            return
        found = next((c.name for c, d in zip(self.whole, self.part, strict=False) if self._meet(c, d)), None)
        where = "" if found is None else f": {found!r} ({type(self.module.get_submodule(found)).__name__})"
        self.problems.append(
            f"rows depend on each other{where}, as with batch statistics; each would be scored by who is beside it "
            f"({_LOOP})"
        )

    def use(self) -> None:
        """Every target runs, on the rows, and moves the logits."""
        called = {call.name: call for call in self.whole}
        for name in (*self.forward.targets, *self.forward.trained):
            if name not in called:
                self.problems.append(
                    f"{name!r} is never called: its weights are read directly or not at all, so that an adapter would "
                    "do nothing"
                )
                continue
            shape = [*called[name].inputs[0].shape] if called[name].inputs else []
            if not self.forward.loop and (len(shape) < 2 or shape[0] % len(self.rows)):
                self.problems.append(
                    f"{name!r}: its input {shape} does not begin with the {len(self.rows)} rows of the batch ({_LOOP})"
                )
        if self.problems:
            return
        for draw in range(3):  # a unit may happen to be off for all of a few rows
            still = self._unmoved(draw)
            if not still:
                return
        self.problems += [f"{name!r}: no gradient of the logits reaches its adapters" for name in still]

    def users(self) -> None:
        """The rows of a user meet that user's adapters and nobody else's."""
        if self.forward.loop:
            return
        blocks, each = self.blocks(0), len(self.rows) // _USERS
        with torch.no_grad(), self._explained("its forward with adapters"):
            together = self._adapted(blocks, self.rows, _USERS)
            for user in range(_USERS):
                mine = self.rows.take(slice(user * each, (user + 1) * each))
                alone = self._adapted({name: block[user : user + 1] for name, block in blocks.items()}, mine, 1)
                if not close(together[user], alone[0]):
                    self.problems.append(
                        "with adapters a user's logits differ from those of that user alone: in the input of some "
                        f"target the first dimension is not rows in their order ({_LOOP})"
                    )
                    return

    def losses(self) -> None:
        """The loss gives one finite number per row, whatever the other rows."""
        with self._explained("its loss"), torch.no_grad():
            logits = self.forward.plain(self.rows)
            labels = (torch.arange(logits.numel(), device=self.device) % 2).view_as(logits).to(self.dtype)
            found, fewer = self.loss(logits, labels), self.loss(logits[:2], labels[:2])
        if tuple(found.shape) != (len(logits),):
            self.problems.append(f"its loss returns {list(found.shape)}, expected one per row [{len(logits)}]")
        elif not found.isfinite().all():
            self.problems.append("its loss is not finite")
        elif not close(found[:2], fewer):
            self.problems.append("its loss of a row depends on the other rows")

    def distinct(self, most_bytes: int) -> Distinct:
        """The frozen parts, if the module computes the same with them."""
        traces = []
        with torch.no_grad():
            for draw in range(2):
                with traced(self.module) as calls:
                    expected = self._adapted(self.blocks(draw), self.rows, _USERS)
                traces.append(calls)
            layers = (*self.forward.targets, *self.forward.trained)
            found = Distinct(self.module, frozen_parts(self.module, layers, self.whole, self.part, traces), most_bytes)
            self.forward.distinct = found
            try:
                same = [close(self._adapted(self.blocks(1), self.rows, _USERS), expected) for _ in range(2)]
            finally:
                self.forward.distinct = None
        return found if all(same) else Distinct(self.module, [], most_bytes)

    def blocks(self, draw: int) -> dict[str, Tensor]:
        """Random adapters of three users."""
        shapes: dict[str, tuple[int, ...]] = {}
        for name in self.forward.targets:
            layer = linear_of(self.module.get_submodule(name))
            made = self.branches.blocks(layer_name(name), layer.in_features, layer.out_features, 4)
            shapes |= {block.name: block.shape for block in made}
        for name in self.forward.trained:
            layer = linear_of(self.module.get_submodule(name))
            shapes |= {f"{head_name(name)}.{part}": tuple(value.shape) for part, value in layer.named_parameters()}
        source = generator(draw, "check")
        return {
            name: (torch.randn(_USERS, *shape, generator=source, dtype=torch.float64) / max(1, shape[-1]) ** 0.5).to(
                self.device, self.dtype
            )
            for name, shape in shapes.items()
        }

    def _adapted(self, blocks: dict[str, Tensor], rows: Rows, users: int) -> Tensor:
        return self.forward.adapted(self.branches, blocks, rows, users)[0]

    def _unmoved(self, draw: int) -> list[str]:
        """Targets whose adapters have no gradient."""
        blocks = {name: block.requires_grad_() for name, block in self.blocks(draw).items()}
        last = {name: f"{layer_name(name)}.up" for name in self.forward.targets}
        last |= {name: f"{head_name(name)}.weight" for name in self.forward.trained}
        with self._explained("its forward with adapters"), torch.enable_grad():
            logits = self._adapted(blocks, self.rows, _USERS)
            weights = torch.randn(logits.shape, generator=generator(draw, "check"), dtype=torch.float64)
            if not logits.requires_grad:
                return [*last]
            total = (logits * weights.to(logits)).sum()
            found = torch.autograd.grad(total, [blocks[name] for name in last.values()], allow_unused=True)
        return [name for name, value in zip(last, found, strict=True) if value is None or not value.any()]

    def _meet(self, call: Call, other: Call) -> bool:
        """Whether equal rows went into a submodule of two runs and others came out."""
        if call.name != other.name or call.output is None or other.output is None or call.structure is None:
            return False
        share = len(self.rows) // len(self.half)
        pairs = [*zip(call.inputs, other.inputs, strict=False), (call.output, other.output)]
        same = []
        for one, fewer in pairs:
            by_row = one.dim() > 0 and len(one) == share * len(fewer)
            same.append(close(one[: len(fewer)] if by_row else one, fewer))
        return all(same[:-1]) and not same[-1]

    @contextlib.contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        """Turn whatever a module raises into one message."""
        try:
            yield
        except FedpaError:
            raise
        except Exception as error:
            raise ConfigError(
                f"{type(self.module).__name__}: {what} failed on {len(self.rows)} rows "
                f"({type(error).__name__}: {error})",
                "it is called with one argument, fedpa.models.wrap.rows.Rows",
            ) from error


def _state(module: nn.Module) -> dict[tuple[str, str], Any]:
    """What a forward pass could leave behind, by owner and name: tensors as object and version, numbers as they are."""
    found: dict[tuple[str, str], Any] = {}
    for owner, layer in module.named_modules():
        for name, value in {**vars(layer), **layer._parameters, **layer._buffers}.items():
            if isinstance(value, Tensor):
                found[owner, name] = (id(value), None if value.is_inference() else value._version)
            elif isinstance(value, (bool, int, float)):
                found[owner, name] = value
    return found
