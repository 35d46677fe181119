"""A node whose rows are prepared once: a new process for every message reads them from its disk."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
import torch
from torch import Tensor

from fedpa.durable import make_folder, replace
from fedpa.errors import ArtifactError
from fedpa.federation.node import Node
from fedpa.federation.order import Base
from fedpa.federation.rows import ShardRows
from fedpa.federation.tally import Tally

__all__ = ["PreparedNode"]

_log = logging.getLogger(__name__)
_FILE = "rows.safetensors"
_TENSOR, _ARRAY, _MAPPING, _NONE = "tensor", "array", "mapping", "none"


class PreparedNode(Node):
    """A node that keeps its rows as the method reads them, beside the generations.

    What the foundation's reader says of every row takes longer to find out than to read again. The file is made anew
    when it is damaged, or of other data, settings or item counts.
    """

    @property
    def prepared(self) -> Path:
        """Where the rows are kept."""
        return self.folder.parent / f"{self.folder.name}.{_FILE}"

    def rows(self, tally: Tally | None) -> ShardRows:
        """Its users' rows as the method reads them, with everybody's item counts."""
        key = self._key()
        found = _read(self.prepared, key, self.device)
        if found is not None:
            return ShardRows(**found, tally=tally)
        rows = super().rows(tally)
        packed = _packed(rows)
        if packed is not None:
            make_folder(self.prepared.parent, sync=self.sync)
            replace(self.prepared, safetensors.numpy.save(packed, {"key": key}), sync_name=False)
        return rows

    def base_of(self, base: Base) -> Base:
        """Where it starts from: as ordered or, if it lost that, from what it holds that is nearest.

        Raises
        ------
        ArtifactError
            If it holds nothing undamaged.
        """
        store = self.shard.store
        try:
            store.at(base.generation)
        except ArtifactError as error:
            held = store.held()
            if not held:
                raise
            nearest = max((n for n in held if n < base.generation), default=min(held))
            _log.warning("%s; going on from generation %d", error.message, nearest)
            return dataclasses.replace(base, generation=nearest)
        return base

    def forget_rows(self) -> None:
        """Prepare them anew; everybody's item counts may be others."""
        self.prepared.unlink(missing_ok=True)

    def _key(self) -> str:
        foundation = None if self.foundation is None else self.foundation.hash
        settings = self.method.settings.model_dump(mode="json")
        return json.dumps([self.dataset.hash, foundation, self.method.name, settings], sort_keys=True)


def _packed(rows: ShardRows) -> dict[str, np.ndarray[Any, Any]] | None:
    """All fields but the item counts, named by what they are; None for rows of another kind."""
    if type(rows) is not ShardRows:
        return None
    found: dict[str, np.ndarray[Any, Any]] = {}
    for field in dataclasses.fields(rows):
        value = getattr(rows, field.name)
        if field.name == "tally":
            continue
        if value is None:
            found[f"{_NONE}/{field.name}"] = np.zeros(0, np.uint8)
        elif isinstance(value, Tensor):
            found[f"{_TENSOR}/{field.name}"] = value.cpu().contiguous().numpy()
        elif isinstance(value, np.ndarray):
            found[f"{_ARRAY}/{field.name}"] = np.ascontiguousarray(value)
        elif isinstance(value, dict):
            found |= {f"{_MAPPING}/{field.name}/{key}": one.cpu().contiguous().numpy() for key, one in value.items()}
            found[f"{_MAPPING}/{field.name}"] = np.zeros(0, np.uint8)
        else:
            return None
    return found


def _read(path: Path, key: str, device: torch.device) -> dict[str, Any] | None:
    """What `_packed` packed, if it is there, undamaged and of the key."""
    with contextlib.suppress(OSError, safetensors.SafetensorError):
        with safetensors.safe_open(path, "numpy") as file:
            if (file.metadata() or {}).get("key") != key:
                return None
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        found: dict[str, Any] = {}
        for name, array in sorted(arrays.items()):
            kind, field, *inner = name.split("/", 2)
            if kind == _NONE:
                found[field] = None
            elif kind == _ARRAY:
                found[field] = array
            elif kind == _TENSOR:
                found[field] = torch.from_numpy(array).to(device)
            elif not inner:
                found[field] = {}
            else:
                found[field][inner[0]] = torch.from_numpy(array).to(device)
        return found
    return None
