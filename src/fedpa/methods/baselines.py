"""Methods without federation: the yardsticks that stand in every table."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fedpa.data.dataset import Dataset
from fedpa.errors import ConfigError
from fedpa.federation.rows import ShardRows
from fedpa.methods.method import Baseline, register
from fedpa.methods.two_counters import two_counter_scores
from fedpa.models.foundation import Foundation
from fedpa.models.wrap.wrapped import Wrapped

__all__ = ["FrozenFoundation", "TwoCounters"]


@register
class TwoCounters(Baseline):
    """Smoothed click rates of the item (open users) and of the user, from strictly earlier rows."""

    name = "two-counters"
    family = "baseline"
    compared = {"default": "two counters"}  # noqa: RUF012
    needs_foundation = False
    seeds_matter = False

    @property
    def inputs(self) -> str:
        """Nothing but counts."""
        return "counters"

    def scores(self, foundation: Foundation | None, dataset: Dataset, rows: ShardRows) -> npt.NDArray[Any]:
        """Click probabilities [rows]."""
        return two_counter_scores(
            rows.item_views,
            rows.item_clicks,
            rows.own_views,
            rows.own_clicks,
            rows.open_views,
            rows.open_clicks,
        )


@register
class FrozenFoundation(Baseline):
    """The foundation as it is, not adapted."""

    name = "foundation"
    family = "baseline"
    compared = {"default": "frozen foundation"}  # noqa: RUF012

    def scores(self, foundation: Foundation | None, dataset: Dataset, rows: ShardRows) -> npt.NDArray[Any]:
        """Click probabilities [rows]."""
        if foundation is None:
            raise ConfigError("method foundation: no foundation was given")
        if isinstance(foundation, Wrapped):
            return foundation.scores(dataset, rows)
        coded = foundation.inputs.private_rows(dataset, rows)
        with torch.inference_mode():
            found = [foundation.model(*piece[:4]).sigmoid() for piece in coded.pieces()]
        return torch.cat(found).numpy() if found else np.zeros(0, np.float32)
