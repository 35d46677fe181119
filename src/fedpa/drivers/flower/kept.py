"""Messages that outlive a process: one safetensors file each."""

from __future__ import annotations

import json
from pathlib import Path

import safetensors
import safetensors.numpy

from fedpa.durable import replace
from fedpa.errors import ArtifactError
from fedpa.federation.form import Message

__all__ = ["load_message", "save_message"]


def save_message(path: Path, message: Message) -> None:
    """Keep a message in a safetensors file, for good when this returns."""
    header, arrays = message
    replace(path, safetensors.numpy.save(arrays, {"header": json.dumps(header)}))


def load_message(path: Path) -> Message:
    """A message that was kept; what is in it is checked by whoever unpacks it.

    Raises
    ------
    ArtifactError
        If the file is missing or cannot be read.
    """
    try:
        with safetensors.safe_open(path, "numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            return json.loads((file.metadata() or {})["header"]), arrays
    except (OSError, KeyError, ValueError, safetensors.SafetensorError) as error:
        raise ArtifactError(f"{path}: cannot be read ({error})") from error
