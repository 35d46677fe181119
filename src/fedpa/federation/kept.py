"""Messages that outlive a process: one safetensors file each."""

from __future__ import annotations

import json
from pathlib import Path

import safetensors
import safetensors.numpy

from fedpa.durable import replace
from fedpa.errors import ArtifactError
from fedpa.federation.form import Message, Refused
from fedpa.federation.tally import Tally
from fedpa.federation.wire import unpack_tally

__all__ = ["EVERYBODY", "TALLY", "kept_tally", "load_message", "save_message"]

TALLY = "tally.safetensors"
"""In a run's folder, everybody's item counts as all nodes were told them, where nodes are no part of this process."""

EVERYBODY = -1
"""In place of a node's number, on the sum of all nodes' item counts."""


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


def kept_tally(folder: Path, periods: int, items: int) -> Tally | None:
    """Everybody's item counts in a finished run's folder; None if it keeps none.

    Raises
    ------
    ArtifactError
        If they cannot be read.
    """
    path = folder / TALLY
    if not periods or not path.exists():
        return None
    header, arrays = load_message(path)
    try:
        return unpack_tally(str(header.get("run")), EVERYBODY, periods, items, header, arrays)
    except Refused as refusal:
        raise ArtifactError(f"{path}: {refusal.message}", "adapt again") from refusal
