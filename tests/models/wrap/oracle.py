"""A module with one user's adapters in ordinary PyTorch: layers are replaced, nothing is shared with the engine."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fedpa.models.adapted import AdapterSettings


class Adapted(nn.Module):
    """``g[0] M(x) + s sum_j g[1 + j] B_j A_j x`` for one user."""

    def __init__(self, frozen: nn.Module, name: str, block: Mapping[str, Tensor], settings: AdapterSettings) -> None:
        super().__init__()
        self.frozen, self.name, self.block, self.settings = frozen, name, dict(block), settings

    def forward(self, x: Tensor) -> Tensor:
        rank, down, up = self.settings.rank, self.block[f"{self.name}.down"], self.block[f"{self.name}.up"]
        branches = len(up) // rank
        gate = x.new_ones(*x.shape[:-1], 1 + branches)
        if self.settings.gate:
            hidden = torch.relu(x @ down[branches * rank :].T + self.block[f"{self.name}.gate.0.bias"])
            scores = hidden @ self.block[f"{self.name}.gate.1.weight"].T + self.block[f"{self.name}.gate.1.bias"]
            gate = torch.softmax(scores, -1) * (1 + branches)
        found: Tensor = gate[..., :1] * self.frozen(x)
        for j in range(branches):
            part = slice(j * rank, (j + 1) * rank)
            scale = self.settings.alpha / rank * gate[..., 1 + j : 2 + j]
            found = found + scale * (x @ down[part].T @ up[part])
        return found


class Trained(nn.Module):
    """A linear layer with one user's weights."""

    def __init__(self, name: str, block: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.name, self.block = name, dict(block)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.block[f"{self.name}.weight"], self.block.get(f"{self.name}.bias"))


def of_user(
    module: nn.Module,
    targets: tuple[str, ...],
    trained: tuple[str, ...],
    block: Mapping[str, Tensor],
    settings: AdapterSettings,
) -> nn.Module:
    """A copy of the module whose layers are one user's."""
    mine = copy.deepcopy(module)
    for name in targets:
        layer = f"layers.{name.replace('.', '/')}"
        _put(mine, name, Adapted(mine.get_submodule(name), layer, block, settings))
    for name in trained:
        _put(mine, name, Trained(f"head.{name.replace('.', '/')}", block))
    return mine


def _put(module: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(module.get_submodule(parent), last, layer)
