"""What models of item ids share: an embedding per item, a vector per user, and the foundation's logit below."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from fedpa.data.dataset import Dataset
from fedpa.draws import generator
from fedpa.federation.parameters import Block, Layout, Parameter, Scope, Table
from fedpa.federation.rows import Batch, group_sizes
from fedpa.models.foundation import Foundation
from fedpa.models.products import gather_rows
from fedpa.settings import Settings

__all__ = ["ItemIdModel", "ItemSettings"]


class ItemSettings(Settings):
    """Settings of methods that learn an embedding per item.

    Attributes
    ----------
    on_foundation : bool
        Add the method's logit to the foundation's; otherwise it stands alone, as published.
    width : int
        Of the embeddings.
    std : float
        Spread of their random start.
    item_rate : float or None
        Learning rate of the item embeddings, in multiples of ``lr`` times the expected number of participants: an
        average over all of them moves an item that few touched by little, and at 1, with a single local step, the
        server adds the sum of what devices send. With ``table_mean=touched``, in multiples of ``lr`` alone. None is
        ``lr`` times 80 times the number of items, as in the code published with PFedRec and GPFedRec.
    """

    on_foundation: bool = False
    width: Annotated[int, Field(ge=1)] = 16
    std: Annotated[float, Field(gt=0)] = 0.1
    item_rate: Annotated[float, Field(gt=0)] | None = 1.0


class ItemIdModel:
    """Base of models whose input is the item's id: give `parts` and `logits`.

    Parameters
    ----------
    settings : ItemSettings
    rule : callable
        From a parameter's name to its scope.
    foundation : Foundation or None
        Read only with ``on_foundation``.
    dataset : Dataset
    seed : int
        Of the random starts.
    """

    def __init__(
        self,
        settings: ItemSettings,
        rule: Callable[[str], Scope],
        foundation: Foundation | None,
        dataset: Dataset,
        *,
        seed: int,
        device: torch.device,
    ) -> None:
        self.settings = settings
        self._seed, self._device = seed, device
        self._items = dataset.n_items
        self._backbone = None
        if settings.on_foundation and foundation is not None:
            self._backbone = copy.deepcopy(foundation.model).to(device, settings.torch_dtype)
            self._user_codes = torch.from_numpy(dataset.user_codes).to(device)
            self._item_codes = torch.from_numpy(foundation.inputs.item_codes(dataset)).to(device)
        tables, parameters = self.parts()
        blocks = [Block(parameter.name, (parameter,)) for parameter in parameters]
        self.layout = Layout(blocks, rule, group_sizes(dataset), tables)

    def parts(self) -> tuple[list[Table], list[Parameter]]:
        """The model's tables and its other parameters, each a block of its own name."""
        raise NotImplementedError

    def logits(self, blocks: Mapping[str, Tensor], rows: Mapping[str, Tensor]) -> Tensor:
        """Logits [users, rows] from the blocks and, by table, the rows' embeddings [users, rows, width]."""
        raise NotImplementedError

    def forward(self, blocks: Mapping[str, Tensor], batch: Batch) -> tuple[Tensor, list[Tensor]]:
        """Click logits [users, rows]; no gates."""
        rows = self.item_rows(blocks, batch)
        logits = self.logits(blocks, rows)
        if self._backbone is not None:
            logits = logits + self._foundation_logits(batch)
        return logits, []

    def item_rows(self, blocks: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """By table the embeddings of the batch's items [users, rows, width]."""
        return {t.name: gather_rows(blocks[t.name], batch.slots[t.name]).squeeze(-2) for t in self.layout.tables}

    def item_table(self, name: str, *, std: float | None = None) -> Table:
        """An embedding per item that starts at random, or at zero with ``std=0``."""
        start = self.drawn(name, (self._items, self.settings.width), std)
        return Table(name, self._items, self.settings.width, start, lambda items, _: items[..., None])

    def user_vector(self, name: str, width: int) -> Parameter:
        """A vector per user [1, width] that starts at random, for everybody alike.

        Were the starts independent, the first changes of an item would cancel in the average: what users have in
        common about it could not be learned.
        """
        return Parameter(name, (1, width), self.drawn(name, (1, width)))

    def linear(self, name: str, into: int, out: int, *, zero: bool = False) -> list[Parameter]:
        """Weight and bias of a layer, uniform in +- 1 / sqrt(in), or zero."""
        bound = 0.0 if zero else into**-0.5
        draws = [
            (2 * torch.rand(shape, dtype=torch.float64, generator=generator(self._seed, f"start/{name}.{kind}")) - 1)
            for kind, shape in (("weight", (out, into)), ("bias", (out,)))
        ]
        weight, bias = (draw.mul(bound).to(self._device, self.settings.torch_dtype) for draw in draws)
        return [Parameter(f"{name}.weight", (out, into), weight), Parameter(f"{name}.bias", (out,), bias)]

    def drawn(self, name: str, shape: tuple[int, ...], std: float | None = None) -> Tensor:
        """Normal draws of the given or the settings' spread."""
        spread = self.settings.std if std is None else std
        draw = torch.randn(shape, generator=generator(self._seed, f"start/{name}"))
        return draw.mul_(spread).to(self._device, self.settings.torch_dtype)

    def _foundation_logits(self, batch: Batch) -> Tensor:
        if self._backbone is None:
            raise RuntimeError("the model has no foundation")
        with torch.no_grad():
            users = self._user_codes[batch.users].long()[:, None, :].expand(-1, batch.items.shape[1], -1)
            found: Tensor = self._backbone(users, self._item_codes[batch.items].long(), batch.context, batch.dense)
        return found
