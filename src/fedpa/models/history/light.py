"""A light reader of a user's past: smoothed click rates, of the user on items of this kind too, and its taste."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedpa.data.dataset import Dataset
from fedpa.data.past import Past, Queries
from fedpa.data.statistics import smoothed_rate
from fedpa.models.history.reader import Floats
from fedpa.models.history.taste import Taste

__all__ = ["ITEM_STRENGTH", "KIND_STRENGTH", "USER_STRENGTH", "LightHistory"]

ITEM_STRENGTH, USER_STRENGTH, KIND_STRENGTH = 10.0, 5.0, 3.0
"""By how many rows the rates of an item, of a user, and of a user on a kind of item are drawn to what they refine."""

_BLOCK = 1 << 16
_STEPS = 8
_LENGTHS = (8, 16, 32, 64)


class LightHistory:
    """Evidence about a candidate in a handful of numbers, from sums that a device can keep.

    In log-odds, each against what it refines:

    * the item's click rate among everybody's rows against the overall rate, and the logarithm of its views;
    * the user's own click rate against the overall rate, and the logarithm of its views;
    * for every feature of the item, and for the item itself: the user's click rate on rows of that same value
      against its rate on all, and the logarithm of their number. The k-th latest row counts ``0.5 ** (k / half_life)``;
    * what the user's taste says of the item, and how readily the user clicks beside that; see
      `fedpa.models.history.taste`, the only part that is trained.

    The evidence is standardised by the mean and the spread over the rows that the foundation was trained on.

    Parameters
    ----------
    kinds : sequence of (str, int)
        Item features that are compared, and how many neighbouring codes count as one value.
    taste : Taste, optional
        Over the same item features.
    length : int
        How many of the latest rows are compared; the user's own rate is over all of them.
    half_life : float or None
        In rows; None counts all rows alike.
    mean, spread : sequence of float, optional
        Of the evidence, for its standardisation.
    """

    name = "light"
    item_ids: pl.Series | None = None

    def __init__(
        self,
        kinds: Sequence[tuple[str, int]],
        taste: Taste | None = None,
        length: int = 100,
        half_life: float | None = None,
        mean: Sequence[float] | None = None,
        spread: Sequence[float] | None = None,
    ) -> None:
        self.kinds = [(str(name), int(step)) for name, step in kinds]
        self.taste = taste
        self.length = length
        self.half_life = half_life
        self.width = 4 + 2 * (len(self.kinds) + 1) + 2 * (taste is not None)
        self.mean = np.zeros(self.width) if mean is None else np.asarray(mean, np.float64)
        self.spread = np.ones(self.width) if spread is None else np.asarray(spread, np.float64)

    @property
    def names(self) -> tuple[str, ...]:
        """What each column is."""
        kinds = [name for name, _ in self.kinds]
        own = (f"{kind}_{what}" for kind in (*kinds, "same_item") for what in ("rate", "views"))
        taste = () if self.taste is None else ("taste", "lean")
        return ("item_rate", "item_views", "user_rate", "user_views", *own, *taste)

    def spec(self) -> dict[str, Any]:
        """What `from_spec` needs, as JSON."""
        return {
            "reader": self.name,
            "kinds": [[name, step] for name, step in self.kinds],
            "taste": None if self.taste is None else {"sizes": list(self.taste.sizes), "width": self.taste.width},
            "length": self.length,
            "half_life": self.half_life,
            "mean": self.mean.tolist(),
            "spread": self.spread.tolist(),
        }

    def state(self) -> Mapping[str, Tensor]:
        """Weights of the taste."""
        return {} if self.taste is None else self.taste.state_dict()

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any], state: Mapping[str, Tensor]) -> Self:
        """The reader of that specification, with trained weights."""
        taste = None
        if spec["taste"] is not None:
            taste = Taste(spec["taste"]["sizes"], spec["taste"]["width"])
            taste.load_state_dict(state)
            taste.eval().requires_grad_(False)
        return cls(spec["kinds"], taste, spec["length"], spec["half_life"], spec["mean"], spec["spread"])

    def kinds_of(self, dataset: Dataset) -> NDArray[np.int32]:
        """Codes of the compared features of a data set's items [n_items, kinds]."""
        names = [feature.name for feature in dataset.item_features]
        return dataset.item_codes[:, [names.index(name) for name, _ in self.kinds]]

    @classmethod
    def for_items(cls, dataset: Dataset, taste: Taste | None = None, half_life: float | None = None) -> Self:
        """A reader that compares all item features of a data set; numeric ones in eighths of their codes."""
        features = dataset.manifest["features"]["item"]
        kinds = [(f["name"], 1 if "vocabulary" in f else -(-f["size"] // _STEPS)) for f in features]
        return cls(kinds, taste, half_life=half_life)

    def standardise(self, evidence: Floats) -> None:
        """Take mean and spread from evidence [rows, width] of training rows that was read without them."""
        self.mean = evidence.mean(0, dtype=np.float64)
        self.spread = evidence.std(0, dtype=np.float64) + 1e-3

    def read(self, past: Past, kinds: NDArray[np.integer], queries: Queries) -> Floats:
        """Evidence of every candidate.

        Parameters
        ----------
        past : Past
        kinds : ndarray of int, shape ``[n_items, kinds]``
            Codes of the compared features, before neighbours are joined.
        queries : Queries

        Returns
        -------
        ndarray of float32, shape ``[queries, candidates, width]``
        """
        steps = np.array([step for _, step in self.kinds], np.int64)
        values = np.concatenate([kinds // steps, np.arange(len(kinds))[:, None]], 1).astype(np.int64)
        out = np.empty((*queries.items.shape, self.width), np.float32)
        vectors, bases = self._tables(kinds)
        # A row's own number of rows decides how far it is looked back, so that its sums do not depend on its company.
        lengths = [*(n for n in _LENGTHS if n < self.length), self.length]
        bucket = np.searchsorted(lengths, np.minimum(queries.views, self.length))
        block = max(1, _BLOCK // queries.items.shape[1])
        for place, length in enumerate(lengths):
            chosen = np.flatnonzero(bucket == place)
            for begin in range(0, len(chosen), block):
                here = chosen[begin : begin + block]
                out[here] = self._block(past, values, vectors, bases, queries.at(here), length)
        return out

    def _tables(self, kinds: NDArray[np.integer]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Vectors and bases of the catalogue, as the taste has them."""
        if self.taste is None:
            return np.zeros((len(kinds), 0)), np.zeros(len(kinds))
        with torch.inference_mode():
            vectors, bases = self.taste.items(torch.from_numpy(kinds.astype(np.int64)))
        return vectors.double().numpy(), bases.double().numpy()

    def _block(
        self,
        past: Past,
        values: NDArray[np.int64],
        vectors: NDArray[np.float64],
        bases: NDArray[np.float64],
        queries: Queries,
        length: int,
    ) -> Floats:
        overall = (queries.all_clicks + 1.0) / (queries.all_views + 2.0)
        prior = overall[:, None]
        opened = queries.all_clicks, queries.all_views
        every = queries.all_clicks[:, None], queries.all_views[:, None]
        item = smoothed_rate(queries.item_clicks, queries.item_views, *every, ITEM_STRENGTH)
        own = smoothed_rate(queries.clicks, queries.views, *opened, USER_STRENGTH)
        columns = [
            _logit(item) - _logit(prior),
            np.log1p(queries.item_views),
            (_logit(own) - _logit(overall))[:, None],
            np.log1p(queries.views)[:, None],
        ]
        places, real = past.recent(queries.user, queries.views, length)
        age = np.arange(length, dtype=np.float64)[::-1]
        weight = np.ones(length) if self.half_life is None else np.power(0.5, age / self.half_life)
        weight = real * weight
        clicked = weight * past.click[places]
        matched = _in_tables if queries.items.shape[1] > length else _in_pairs
        for kind in range(values.shape[1]):
            seen, liked = matched(values[:, kind], past.item[places], weight, clicked, queries.items)
            rate = (liked + KIND_STRENGTH * own[:, None]) / (seen + KIND_STRENGTH)
            columns += [_logit(rate) - _logit(own)[:, None], np.log1p(seen)]
        if self.taste is not None:
            own_rows = past.item[places], past.click[places], real
            taste, lean = self.taste.read(vectors, bases, *own_rows, queries.items)
            columns += [taste, lean[:, None]]
        shape = queries.items.shape
        found = np.stack([np.broadcast_to(column, shape) for column in columns], -1)
        evidence: Floats = ((found - self.mean) / self.spread).astype(np.float32)
        return evidence


Matched = tuple[NDArray[np.float64], NDArray[np.float64]]


def _in_pairs(
    value: NDArray[np.int64],
    items: NDArray[np.int64],
    weight: NDArray[np.float64],
    clicked: NDArray[np.float64],
    candidates: NDArray[np.integer],
) -> Matched:
    """Weights of own rows [queries, length], and of clicked ones, of each candidate's value [queries, candidates]."""
    seen, liked = np.empty(candidates.shape), np.empty(candidates.shape)
    for column in range(candidates.shape[1]):
        same = value[items] == value[candidates[:, column]][:, None]
        seen[:, column], liked[:, column] = (weight * same).sum(1), (clicked * same).sum(1)
    return seen, liked


def _in_tables(
    value: NDArray[np.int64],
    items: NDArray[np.int64],
    weight: NDArray[np.float64],
    clicked: NDArray[np.float64],
    candidates: NDArray[np.integer],
) -> Matched:
    """The same through a table of all values per query: for many candidates."""
    size = int(value.max()) + 1
    place = (np.arange(len(items))[:, None] * size + value[items]).ravel()
    shape = len(items), size
    wanted = value[candidates]
    return tuple(  # type: ignore[return-value]
        np.take_along_axis(np.bincount(place, each.ravel(), len(items) * size).reshape(shape), wanted, 1)
        for each in (weight, clicked)
    )


def _logit(rate: NDArray[np.float64]) -> NDArray[np.float64]:
    odds: NDArray[np.float64] = np.log(rate / (1 - rate))
    return odds
