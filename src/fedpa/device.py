"""The device that a user names."""

from __future__ import annotations

import torch

from fedpa.errors import ConfigError

__all__ = ["open_device"]


def open_device(name: str) -> torch.device:
    """A device that works here.

    Raises
    ------
    ConfigError
        If there is no such device, or nothing can be computed on it.
    """
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device {name!r} cannot be used here ({reason})", "use --device cpu") from None
    return device
