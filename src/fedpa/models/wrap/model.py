"""A wrapped module with the adapters of many users, as a function of its parameters."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from fedpa.data.dataset import Dataset
from fedpa.errors import ConfigError
from fedpa.federation.parameters import Block, Layout, Scope, Table
from fedpa.federation.rows import Batch, group_sizes
from fedpa.models.adapted import AdapterSettings, own_id
from fedpa.models.branches import Branches
from fedpa.models.products import gather_rows
from fedpa.models.wrap.passes import head_name
from fedpa.models.wrap.rows import Rows
from fedpa.models.wrap.targets import layer_name, linear_of
from fedpa.models.wrap.wrapped import Wrapped

__all__ = ["WrappedModel"]

_PARTS = {"wide": "a wide term", "personal_embedding": "personal embeddings"}


class WrappedModel:
    """The adapted module; parameters are named as `fedpa.models.adapted.AdaptedMLP` names its own.

    Parameters
    ----------
    settings : AdapterSettings
    rule : callable
        From a parameter's name to its scope.
    wrapped : Wrapped
        Moved to the device, and checked on the data set if it never was.
    dataset : Dataset
    seed : int
        For the random starts.

    Raises
    ------
    ConfigError
        If the settings do not fit the module, or it cannot be adapted; see `Wrapped.check`.
    """

    def __init__(
        self,
        settings: AdapterSettings,
        rule: Callable[[str], Scope],
        wrapped: Wrapped,
        dataset: Dataset,
        *,
        seed: int,
        device: torch.device,
    ) -> None:
        self._fits(settings, wrapped)
        wrapped.model.to(device)
        if wrapped.forward.distinct is None:
            wrapped.check(dataset)
        self.settings, self._wrapped = settings, wrapped
        sizes = group_sizes(dataset)
        keys = tuple(sizes) if settings.groups is None else settings.groups
        self._branches = Branches(settings, keys, seed=seed, device=device)
        self._source = wrapped.row_source(dataset)
        labels = max(1, len(wrapped.labels))
        start = torch.zeros(dataset.n_items, labels, dtype=settings.torch_dtype, device=device)
        tables = [Table("item_bias", dataset.n_items, labels, start, own_id)] if settings.item_bias else []
        blocks = self._blocks()
        if not (blocks or tables or settings.personal_bias):
            raise ConfigError(
                f"{type(wrapped.model).__name__}: with these settings nothing is trained",
                "name the output head: wrap(..., train=['head'])",
            )
        self.layout = Layout(blocks, rule, sizes, tables)

    def forward(self, blocks: Mapping[str, Tensor], batch: Batch) -> tuple[Tensor, list[Tensor]]:
        """Logits [users, rows] or [users, rows, labels], and each target's gate weights [users, rows, branches]."""
        with _no_inference():
            rows, users = self._source.of_batch(batch), len(batch.users)
            logits, gates = self._in_pieces(blocks, rows, users, batch.real)
            if self.settings.item_bias:
                own = gather_rows(blocks["item_bias"], batch.slots["item_bias"]).squeeze(2)
                logits = logits + (own.squeeze(-1) if logits.dim() == 2 else own)
            return logits, gates

    def loss(self, logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        """Weighted loss per user [users] of logits and labels [users, rows] or [users, rows, labels]."""
        losses = self._wrapped.loss(logits.flatten(0, 1), labels.flatten(0, 1))
        return (losses.view(weights.shape) * weights).sum(1)

    def _in_pieces(
        self, blocks: Mapping[str, Tensor], rows: Rows, users: int, real: Tensor | None
    ) -> tuple[Tensor, list[Tensor]]:
        """The forward pass; where nothing is learnt, as of a whole catalogue, so many rows at a time as chunks have."""
        forward, each = self._wrapped.forward, len(rows) // users
        step = max(1, self._wrapped.rows_per_chunk // users)
        if forward.loop or torch.is_grad_enabled() or each <= step:
            return forward.adapted(self._branches, blocks, rows, users, real)
        place = torch.arange(len(rows), device=rows.items.device).view(users, each)
        logits, gates = [], []
        for begin in range(0, each, step):
            piece = rows.take(place[:, begin : begin + step].flatten())
            found, said = forward.adapted(self._branches, blocks, piece, users)
            logits.append(found)
            gates.append(said)
        return torch.cat(logits, 1), [torch.cat(one, 1) for one in zip(*gates, strict=True)]

    def _blocks(self) -> list[Block]:
        forward, blocks = self._wrapped.forward, []
        for name, hidden in zip(forward.targets, self.settings.gate_hidden, strict=True):
            layer = linear_of(forward.module.get_submodule(name))
            blocks += self._branches.blocks(layer_name(name), layer.in_features, layer.out_features, hidden)
        for name in forward.trained:
            layer = linear_of(forward.module.get_submodule(name))
            blocks += [
                self._branches.single(f"{head_name(name)}.{part}", tuple(value.shape), value)
                for part, value in layer.named_parameters()
            ]
        return blocks

    @staticmethod
    def _fits(settings: AdapterSettings, wrapped: Wrapped) -> None:
        for key, what in _PARTS.items():
            if getattr(settings, key):
                raise ConfigError(
                    f"setting {key!r}: {what} is of the backbone that fedpa pretrains; a wrapped module has none",
                    f"leave {key} out",
                )
        if len(settings.gate_hidden) != len(wrapped.targets):
            raise ConfigError(
                f"setting 'gate_hidden': expected one width per target ({len(wrapped.targets)}), "
                f"found {list(settings.gate_hidden)}"
            )
        if wrapped.dtype != settings.torch_dtype:
            raise ConfigError(
                f"setting 'dtype': is {settings.dtype}, but the module computes in {wrapped.dtype}",
                "set the dtype of the module, or convert it before it is wrapped",
            )


@contextlib.contextmanager
def _no_inference() -> Iterator[None]:
    """Leave inference mode, whose tensors could not be used to train with when they are computed once."""
    if not torch.is_inference_mode_enabled():
        yield
        return
    with torch.inference_mode(False), torch.no_grad():
        yield
