"""Any PyTorch module as a foundation, with the layers that get adapters."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict

import numpy.typing as npt
import torch
from torch import Tensor

from fedpa.data.dataset import Dataset
from fedpa.errors import ConfigError
from fedpa.federation.rows import ShardRows
from fedpa.models.adapted import AdapterSettings
from fedpa.models.foundation import Foundation
from fedpa.models.wrap.check import check as try_module
from fedpa.models.wrap.forward import Forward
from fedpa.models.wrap.rows import Rows, RowSource, first_rows
from fedpa.settings import Settings

__all__ = ["Limits", "Loss", "Wrapped", "limits_of"]

Loss = Callable[[Tensor, Tensor], Tensor]


class Limits(TypedDict, total=False):
    """Arguments of `Shard`."""

    rows_per_chunk: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Wrapped(Foundation):
    """A module as a foundation; made by `fedpa.wrap`.

    Its `model` is the module, not the backbone that `fedpa.pretrain` makes, so that methods which take that backbone
    apart refuse it; `features` are empty, since what the module reads is its own affair.

    Attributes
    ----------
    forward : Forward
        The module with its targets.
    labels : tuple of str
        Empty where the data set's own label is the only one.
    loss : callable
    defaults : dict
        Settings of the adapters where `adapt` is not told otherwise.
    rows_per_chunk, cache_bytes : int
    """

    forward: Forward
    labels: tuple[str, ...]
    loss: Loss
    defaults: dict[str, Any]
    rows_per_chunk: int
    cache_bytes: int

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the layers that get adapters."""
        return self.forward.targets

    @property
    def trained(self) -> tuple[str, ...]:
        """Names of the layers that are trained themselves."""
        return self.forward.trained

    @property
    def once(self) -> tuple[str, ...]:
        """Frozen submodules that are computed once per distinct input, as the last check found them."""
        distinct = self.forward.distinct
        return () if distinct is None else tuple(part.name for part in distinct.parts)

    @property
    def dtype(self) -> torch.dtype:
        """In which the module computes."""
        return next(self.model.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where the module is."""
        return next(self.model.parameters()).device

    def save(self, out: Path | str, *, overwrite: bool = False) -> None:
        """Refused: the module's code makes it, and its weights are in a folder of their own.

        Raises
        ------
        ConfigError
            Always.
        """
        raise ConfigError(
            f"{out}: a wrapped module is not saved as a foundation folder",
            "save its weights with safetensors and wrap it again in my_file.py:build",
        )

    def check(self, batch: Rows | Dataset) -> None:
        """Name what cannot work, before anything runs.

        Parameters
        ----------
        batch : Rows or Dataset
            Rows to try the module on, or a data set to take a few from.

        Raises
        ------
        ConfigError
            If adapters around a target would do nothing, rows depend on each other, the module keeps some state or
            draws random numbers, logits or loss have another shape, or the data set lacks a label.
        DataError
            If the data set has no rows of private users.
        """
        if not isinstance(batch, Rows):
            self._check_labels(batch)
            batch = first_rows(batch, self.device, self.facts["history"])
        try_module(self.forward, self.loss, batch, self.cache_bytes)

    def settings_for(self, kind: type[Settings]) -> dict[str, Any]:
        """Settings of a kind that the module brings; what a method fixes for itself is left to it."""
        if not issubclass(kind, AdapterSettings):
            return {}
        brought = self.defaults | {"personal_embedding": False, "wide": False}
        free = AdapterSettings.model_fields
        return {k: v for k, v in brought.items() if kind.model_fields[k].annotation == free[k].annotation}

    def row_source(self, dataset: Dataset) -> RowSource:
        """What makes the module's argument of a data set's rows."""
        return RowSource(dataset, self.device, self.facts["history"])

    def rows(self, dataset: Dataset, rows: ShardRows) -> ShardRows:
        """The same rows with all labels that the module has logits of, and what it may know of the past."""
        rows = self.inputs.shard_rows(dataset, rows)
        if len(self.labels) < 2:
            return rows
        columns = [torch.from_numpy(dataset.labels[name][rows.row]) for name in self.labels]
        return replace(rows, every_label=torch.stack(columns, 1).to(rows.labels))

    def scores(self, dataset: Dataset, rows: ShardRows) -> npt.NDArray[Any]:
        """Click probabilities of a shard's rows [rows] without adapters."""
        source = self.row_source(dataset)
        out = torch.empty(len(rows.row), dtype=self.dtype)
        with torch.no_grad():
            for piece in self._pieces(rows):
                logits = self.forward.plain(source.of_shard(rows, piece))
                out[piece] = (logits if logits.dim() == 1 else logits[:, 0]).sigmoid().cpu()
        found: npt.NDArray[Any] = out.numpy()
        return found

    def _pieces(self, rows: ShardRows) -> list[slice]:
        """Rows that are scored together: for the loop one user's."""
        if self.forward.loop:
            edges = [0, *((rows.user[1:] != rows.user[:-1]).nonzero()[0] + 1).tolist(), len(rows.row)]
            return [slice(begin, end) for begin, end in itertools.pairwise(edges) if end > begin]
        step = self.rows_per_chunk
        return [slice(begin, begin + step) for begin in range(0, len(rows.row), step)]

    def _check_labels(self, dataset: Dataset) -> None:
        if not self.labels:
            return
        absent = [name for name in self.labels if name not in dataset.label_names]
        if absent:
            raise ConfigError(
                f"{dataset.path}: has no label {absent[0]!r}, its labels are {', '.join(dataset.label_names)}",
                "name labels of the data set: wrap(..., labels=(...))",
            )
        if self.labels[0] != dataset.label_name:
            raise ConfigError(
                f"{dataset.path}: is scored by label {dataset.label_name!r}, but the first label of the module is "
                f"{self.labels[0]!r}",
                f"name {dataset.label_name!r} first, in the order of the logits, or prepare the data set with another "
                "label",
            )


def limits_of(foundation: Foundation | None) -> Limits:
    """Bounds of a shard's chunks, where a foundation asks for its own."""
    return {"rows_per_chunk": foundation.rows_per_chunk} if isinstance(foundation, Wrapped) else {}
