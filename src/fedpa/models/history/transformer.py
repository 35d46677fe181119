"""A reader of a user's past that was trained on open users' sequences: a causal transformer beside the light reader."""

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
from fedpa.models.history.encoder import Encoder
from fedpa.models.history.light import LightHistory
from fedpa.models.history.reader import Floats
from fedpa.models.history.windows import Windows
from fedpa.models.known import known_items

__all__ = ["TransformerHistory"]

_WINDOWS = 64
_ROWS = 1 << 17


class TransformerHistory:
    """Evidence of the light reader and, after it, the candidate's click logit by an encoder of the user's interactions.

    An item that open users never saw, or one added later, has the vector of its features; see `Encoder`.

    Users are read in blocks of one size, filled up, and in windows of one length (see `Windows`), so that equal queries
    get equal bytes in whatever company.

    Parameters
    ----------
    features : sequence of (str, int)
        Item features and their numbers of codes.
    item_ids : Series
        Ids of the items with an embedding of their own, ascending.
    light : LightHistory
    unit : float
        Of times between interactions: the open users' median.
    width, layers, heads, length : int
        As in `Encoder`.
    mean, spread : float
        Of the logit, for its standardisation.
    """

    name = "transformer"

    def __init__(
        self,
        features: Sequence[tuple[str, int]],
        item_ids: pl.Series,
        light: LightHistory,
        unit: float,
        *,
        width: int,
        layers: int,
        heads: int,
        length: int,
        mean: float = 0.0,
        spread: float = 1.0,
    ) -> None:
        self.features = [(str(name), int(size)) for name, size in features]
        self.item_ids = item_ids
        self.light = light
        self.unit = float(unit)
        self._shape = {"width": width, "layers": layers, "heads": heads, "length": length}
        self.encoder = self.untrained()
        self.width = light.width + 1
        self.mean = float(mean)
        self.spread = float(spread)

    def untrained(self, dropout: float = 0.0) -> Encoder:
        """An encoder at its random start."""
        return Encoder([size for _, size in self.features], len(self.item_ids), **self._shape, dropout=dropout)

    def spec(self) -> dict[str, Any]:
        """What `from_spec` needs beside weights and ids, as JSON."""
        return {
            "reader": self.name,
            "features": [[name, size] for name, size in self.features],
            "light": self.light.spec(),
            "unit": self.unit,
            **self._shape,
            "mean": self.mean,
            "spread": self.spread,
        }

    def state(self) -> Mapping[str, Tensor]:
        """Weights of the encoder and of the light reader."""
        parts = {"encoder.": self.encoder.state_dict(), "light.": self.light.state()}
        return {part + name: value for part, state in parts.items() for name, value in state.items()}

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any], state: Mapping[str, Tensor], item_ids: pl.Series) -> Self:
        """The reader of that specification, with trained weights."""
        values = {name: value for name, value in spec.items() if name not in ("reader", "features", "light", "unit")}
        own, inner = (
            {name.removeprefix(part): value for name, value in state.items() if name.startswith(part)}
            for part in ("encoder.", "light.")
        )
        reader = cls(spec["features"], item_ids, LightHistory.from_spec(spec["light"], inner), spec["unit"], **values)
        reader.encoder.load_state_dict(own)
        reader.encoder.eval().requires_grad_(False)
        return reader

    def kinds_of(self, dataset: Dataset) -> NDArray[np.int32]:
        """What the light reader compares, then the features' codes and the place among known ids [n_items, columns]."""
        names = [feature.name for feature in dataset.item_features]
        codes = dataset.item_codes[:, [names.index(name) for name, _ in self.features]]
        return np.concatenate([self.light.kinds_of(dataset), codes, known_items(self.item_ids, dataset)[:, None]], 1)

    def compared(self, kinds: NDArray[np.integer]) -> NDArray[np.integer]:
        """What the light reader compares, of what `kinds_of` gave."""
        return kinds[:, : len(self.light.kinds)]

    def encoded(self, kinds: NDArray[np.integer]) -> NDArray[np.int64]:
        """What the encoder reads, of what `kinds_of` gave."""
        return kinds[:, len(self.light.kinds) :].astype(np.int64)

    def standardise(self, said: Floats) -> None:
        """Take mean and spread from what the encoder says of rows."""
        self.mean, self.spread = float(said.mean(dtype=np.float64)), float(said.std(dtype=np.float64)) + 1e-3

    def read(self, past: Past, kinds: NDArray[np.integer], queries: Queries) -> Floats:
        """Evidence of every candidate.

        Parameters
        ----------
        past : Past
        kinds : ndarray of int, shape ``[n_items, columns]``
            As `kinds_of` gives them.
        queries : Queries

        Returns
        -------
        ndarray of float32, shape ``[queries, candidates, width]``
        """
        light = self.light.read(past, self.compared(kinds), queries)
        return self.joined(light, self.said(past, kinds, queries))

    def joined(self, light: Floats, said: Floats) -> Floats:
        """Both readers' evidence, the encoder's standardised."""
        return np.concatenate([light, ((said - self.mean) / self.spread).astype(np.float32)], -1)

    def said(self, past: Past, kinds: NDArray[np.integer], queries: Queries) -> Floats:
        """The encoder's click logit of every candidate, before its standardisation [queries, candidates, 1]."""
        with torch.inference_mode():
            vectors = self.encoder.items(torch.from_numpy(self.encoded(kinds)))
            z, e = self._states(past, vectors, queries).numpy(), vectors.numpy()
        # Sums of one length, in the same order whatever stands beside them, as matrix products would not have it.
        state_term, item_term = self.encoder.state_term, self.encoder.item_term
        own = (z * state_term.weight.numpy()).sum(-1) + state_term.bias.numpy()
        item = (e * item_term.weight.numpy()).sum(-1)
        out = np.empty((*queries.items.shape, 1), np.float32)
        block = max(1, _ROWS // max(1, queries.items.shape[1]))
        for begin in range(0, len(queries), block):
            here = slice(begin, begin + block)
            items = queries.items[here]
            match = (e[items] * z[here, None]).sum(-1) / np.float32(self.encoder.width**0.5)
            out[here, :, 0] = match + own[here, None] + item[items]
        return out

    def _states(self, past: Past, vectors: Tensor, queries: Queries) -> Tensor:
        """The state after the rows that each query may read [queries, width]."""
        windows = Windows.of(queries, self.encoder.length)
        order = np.argsort(windows.window, kind="stable")
        bounds = np.searchsorted(windows.window[order], np.arange(0, len(windows) + _WINDOWS, _WINDOWS))
        items, clicked, gaps = map(torch.from_numpy, windows.events(past, self.unit))
        out = torch.empty(len(queries), self.encoder.width)
        for place, begin in enumerate(range(0, len(windows), _WINDOWS)):
            block = torch.arange(begin, begin + _WINDOWS).clamp(max=len(windows) - 1)
            states = self.encoder(vectors[items[block]], clicked[block], gaps[block])
            here = torch.from_numpy(order[bounds[place] : bounds[place + 1]])
            out[here] = states[torch.from_numpy(windows.window)[here] - begin, torch.from_numpy(windows.prefix)[here]]
        return out
