"""A causal transformer over a user's interactions, which says what the user likes after each of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, scaled_dot_product_attention

__all__ = ["GAPS", "Encoder"]

GAPS = 22
"""Codes of the time between two interactions; see `fedpa.models.history.windows`."""

_SPREAD = 0.1
_UNKNOWN = 0.1


class Encoder(nn.Module):
    """A state after every interaction and before the first, by which a candidate's vector is scored.

    In the manner of Kang & McAuley, *Self-Attentive Sequential Recommendation*, ICDM 2018, and Zhai et al., *Actions
    Speak Louder than Words*, ICML 2024: an item's vector is the sum of the embeddings of its features and, if it is
    known, of its id; an interaction is its item's vector, scaled by whether it was clicked, plus embeddings of that, of
    the time since the one before, and of its place. Attention sees nothing later. The click logit of a candidate is
    ``z . e / sqrt(width) + a . z + b . e + c``.

    Parameters
    ----------
    sizes : sequence of int
        Numbers of codes of the item features.
    known : int
        How many items have an embedding of their own; 0 stands for all others and stays zero.
    width, layers, heads, length : int
        Of every vector; of attention; how many interactions are read at most.
    dropout : float
        While training.
    """

    def __init__(
        self, sizes: Sequence[int], known: int, width: int, layers: int, heads: int, length: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.width, self.length, self.dropout = width, length, dropout
        self.features = nn.Embedding(sum(sizes), width)
        offsets = torch.tensor([0, *sizes[:-1]]).cumsum(0) if sizes else torch.zeros(0, dtype=torch.int64)
        self.register_buffer("offsets", offsets, persistent=False)
        self.ids = nn.Embedding(known + 1, width, padding_idx=0)
        self.scales = nn.Embedding(2, width)
        self.clicks = nn.Embedding(2, width)
        self.gaps = nn.Embedding(GAPS, width)
        self.places = nn.Embedding(length + 1, width)
        self.start = nn.Parameter(torch.zeros(width))
        self.layers = nn.ModuleList(_Layer(width, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.state_term = nn.Linear(width, 1)
        self.item_term = nn.Linear(width, 1, bias=False)
        for table in (self.features, self.clicks, self.gaps, self.places):
            nn.init.normal_(table.weight, std=_SPREAD)
        nn.init.zeros_(self.ids.weight)
        nn.init.ones_(self.scales.weight)

    def items(self, codes: Tensor) -> Tensor:
        """Vectors [n, width] of items with codes [n, features + 1], the last its place among known ids from 1, or 0."""
        place = codes[:, -1]
        if self.training:  # so that features learn to do without
            place = place * (torch.rand(place.shape, device=place.device) >= _UNKNOWN)
        features: Tensor = self.features(codes[:, :-1] + self.get_buffer("offsets"))
        vectors: Tensor = features.sum(1) + self.ids(place)
        return vectors

    def forward(self, vectors: Tensor, clicked: Tensor, gaps: Tensor) -> Tensor:
        """States [windows, interactions + 1, width], the first of them before any interaction.

        Parameters
        ----------
        vectors : Tensor
            Of the items, oldest first [windows, interactions, width].
        clicked, gaps : Tensor
            0 or 1, and codes of the time since the interaction before [windows, interactions], int64.
        """
        events = vectors * self.scales(clicked) + self.clicks(clicked) + self.gaps(gaps)
        x = torch.cat([self.start.expand(len(events), 1, -1), events], 1)
        x = dropout(x + self.places.weight[: x.shape[1]], self.dropout, self.training)
        for layer in self.layers:
            x = layer(x)
        states: Tensor = self.norm(x)
        return states

    def logits(self, states: Tensor, vectors: Tensor) -> Tensor:
        """Click logits [...] of candidates with vectors [..., width] at states [..., width]."""
        match = (states * vectors).sum(-1) / self.width**0.5
        found: Tensor = match + (self.state_term(states) + self.item_term(vectors)).squeeze(-1)
        return found


class _Layer(nn.Module):
    """Attention to what came before, then two linear maps around a ReLU, each on normalised input and added to it."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.projections, self.merge = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """The same shape [windows, places, width]."""
        split = self.projections(self.before(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = split.unbind()
        seen = scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2).flatten(2)
        x = x + dropout(self.merge(seen), self.dropout, self.training)
        added: Tensor = self.down(torch.relu(self.up(self.between(x))))
        return x + dropout(added, self.dropout, self.training)
