"""A model's weights as they are at one moment of its training."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["snapshot"]


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    """A copy of a module's state, for `load_state_dict`."""
    return {name: value.detach().clone() for name, value in module.state_dict().items()}
