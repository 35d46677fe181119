"""Low-rank branches beside one frozen layer and the gate that mixes them: parameters, starts and the mixing.

For a layer M with input x, rank r, s = alpha / r and adapters A_j, B_j:

    g  = c softmax(W2 relu(W1 x + c1) + c2)
    x' = g[0] M(x) + s sum_j g[1 + j] B_j A_j x

As published c = 1 and the gates start at random; with ``gate_init: foundation`` W2 and c2 start at zero and c is
the number of branches, so that every branch starts with weight one and, B being zero, x' is M(x). Without gates every
weight is one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import linear

from fedpa.draws import generator
from fedpa.federation.parameters import Block, Parameter
from fedpa.models.products import rows_times

if TYPE_CHECKING:
    from fedpa.models.adapted import AdapterSettings

__all__ = ["Branches"]


class Branches:
    """The branches of every adapted layer of a model.

    A layer's parameters are ``<layer>.user.a``, ``<layer>.user.b``, ``<layer>.group.<key>.a``, ... and
    ``<layer>.gate.0.weight``, ``.gate.0.bias``, ``.gate.1.weight``, ``.gate.1.bias``.

    Parameters
    ----------
    settings : AdapterSettings
    keys : sequence of str
        Of the group-level LoRA.
    seed : int
        For the random starts.
    device : torch.device
    starts : mapping, optional
        Starts by parameter name that replace those of the settings.

    Attributes
    ----------
    loras : list of str
        ``user`` and ``group.<key>``, as far as the settings have them.
    number : int
        Branches of a layer, the frozen one among them.
    gated : bool
    """

    def __init__(
        self,
        settings: AdapterSettings,
        keys: Sequence[str],
        *,
        seed: int,
        device: torch.device,
        starts: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.settings = settings
        self.loras = [*(["user"] if settings.user_lora else []), *(f"group.{key}" for key in keys)] * settings.lora
        self.number = 1 + len(self.loras)
        self.gated = settings.gate and self.number > 1
        self.gate_scale = float(self.number) if settings.gate_init == "foundation" else 1.0
        self.scale = settings.alpha / settings.rank
        self._seed, self._device, self._dtype = seed, device, settings.torch_dtype
        self._starts = starts or {}
        # From gates [branches] to the factor of every low-rank unit [adapters x rank].
        units = torch.eye(self.number)[1:].repeat_interleave(settings.rank, 0)
        self._spread = (units * self.scale).to(device, self._dtype)

    def blocks(self, layer: str, into: int, out: int, hidden: int) -> list[Block]:
        """The parameters of a layer from `into` to `out` features whose gate has a hidden width; none without LoRA."""
        if not self.loras:
            return []
        rank = self.settings.rank
        down = [self.parameter(f"{layer}.{lora}.a", (rank, into)) for lora in self.loras]
        up = [self.parameter(f"{layer}.{lora}.b", (rank, out)) for lora in self.loras]
        if not self.gated:
            return [Block(f"{layer}.down", tuple(down)), Block(f"{layer}.up", tuple(up))]
        down.append(self.parameter(f"{layer}.gate.0.weight", (hidden, into)))
        return [
            Block(f"{layer}.down", tuple(down)),
            self.single(f"{layer}.gate.0.bias", (hidden,), fan_in=into),
            self.single(f"{layer}.gate.1.weight", (self.number, hidden)),
            self.single(f"{layer}.gate.1.bias", (self.number,), fan_in=hidden),
            Block(f"{layer}.up", tuple(up)),
        ]

    def mix(
        self, layer: str, blocks: Mapping[str, Tensor], down: Tensor, frozen: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Add a layer's branches to its frozen output.

        Parameters
        ----------
        layer : str
        blocks : mapping
            The users' parameters [users, *shape].
        down : Tensor
            Each user's rows times the block ``<layer>.down`` [users, rows, adapters x rank (+ gate's hidden width)].
        frozen : Tensor
            M(x) [users, rows, out].

        Returns
        -------
        mixed : Tensor
            [users, rows, out].
        gate : Tensor or None
            Weights [users, rows, branches]; None without gates.
        """
        if not self.gated:
            return torch.baddbmm(frozen, down, blocks[f"{layer}.up"], alpha=self.scale), None
        adapters = len(self.loras) * self.settings.rank
        hidden = torch.relu(down[..., adapters:] + blocks[f"{layer}.gate.0.bias"][:, None, :])
        scores = rows_times(hidden, blocks[f"{layer}.gate.1.weight"]) + blocks[f"{layer}.gate.1.bias"][:, None, :]
        # Over the middle axis: the kernel for a last axis of a few branches is several times slower.
        gate = torch.softmax(scores.transpose(1, 2).contiguous(), 1).transpose(1, 2) * self.gate_scale
        scaled = down[..., :adapters] * linear(gate, self._spread)
        mixed = torch.bmm(scaled, blocks[f"{layer}.up"])
        return torch.addcmul(mixed, gate[..., :1], frozen), gate

    def single(self, name: str, shape: tuple[int, ...], start: Tensor | None = None, *, fan_in: int = 1) -> Block:
        """A block of one parameter of the same name."""
        return Block(name, (self.parameter(name, shape, start, fan_in=fan_in),))

    def parameter(
        self, name: str, shape: tuple[int, ...], start: Tensor | None = None, *, fan_in: int = 1
    ) -> Parameter:
        """A parameter that starts as given, or as the settings say; `fan_in` is that of a bias."""
        if name in self._starts:
            given = self._starts[name]
            return Parameter(name, shape, self._placed(given), per_value=given.dim() > len(shape))
        value = self._start(name, shape, shape[-1] if len(shape) > 1 else fan_in) if start is None else start
        return Parameter(name, shape, self._placed(value))

    def _start(self, name: str, shape: tuple[int, ...], fan_in: int) -> Tensor:
        settings = self.settings
        if name.endswith(".b") or (name.endswith(".a") and settings.lora_init == "zero"):
            return torch.zeros(shape)
        if ".gate.1." in name and settings.gate_init == "foundation":
            return torch.zeros(shape)
        if name.endswith(".gate.1.bias") and settings.gate_init == "open":
            return torch.tensor([3.0] + [0.0] * (shape[0] - 1))
        draw: Tensor = torch.rand(shape, dtype=torch.float64, generator=generator(self._seed, f"start/{name}"))
        return (2 * draw - 1).div(fan_in**0.5)

    def _placed(self, value: Tensor) -> Tensor:
        return value.detach().to(self._device, self._dtype)
