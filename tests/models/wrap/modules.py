"""Modules of one's own, small: a text encoder of Hugging Face, DCN-v2, a model of two labels."""

from __future__ import annotations

import os

import numpy as np
import torch
from torch import Tensor, nn

from fedpa.data.dataset import Dataset
from fedpa.models.wrap.rows import Rows

os.environ["HF_HUB_OFFLINE"] = "1"

TOKENS = 6


def tokens_of(items: int) -> Tensor:
    """Some tokens of every item [items, TOKENS]; every second item has the text of the one before."""
    drawn = np.random.default_rng(0).integers(3, 40, (items, TOKENS))
    return torch.from_numpy(drawn[np.arange(items) // 2 * 2])


class TextRanker(nn.Module):
    """Items by their text: a BERT reads the tokens, a user tower the user's features."""

    def __init__(self, data: Dataset, layers: int = 3) -> None:
        from transformers import BertConfig, BertModel

        super().__init__()
        config = BertConfig(
            vocab_size=40,
            hidden_size=16,
            num_hidden_layers=layers,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=TOKENS,
        )
        self.text = BertModel(config, add_pooling_layer=False)
        self.register_buffer("tokens", tokens_of(data.n_items))
        self.user = Embeddings([f.size for f in data.user_features], 4)
        self.score = nn.Sequential(nn.Linear(16 + self.user.width, 12), nn.ReLU())
        self.head = nn.Linear(12, 1)

    def forward(self, rows: Rows) -> Tensor:
        ids = self.get_buffer("tokens")[rows.items]
        item = self.text(input_ids=ids).last_hidden_state.mean(1)
        found: Tensor = self.head(self.score(torch.cat([item, self.user(rows.user_codes)], -1)))
        return found.squeeze(-1)


class Embeddings(nn.Module):
    """One table for all features of a side."""

    def __init__(self, sizes: list[int], width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(sum(sizes), width)
        self.register_buffer("offsets", torch.tensor([0, *sizes[:-1]]).cumsum(0))
        self.width = width * len(sizes)

    def forward(self, codes: Tensor) -> Tensor:
        found: Tensor = self.table(codes + self.get_buffer("offsets"))
        return found.flatten(-2)


class DCN(nn.Module):
    """Wang et al., *DCN V2*, WWW 2021: two cross layers beside two deep ones."""

    def __init__(self, data: Dataset, width: int = 4, labels: int = 1) -> None:
        super().__init__()
        sides = (data.user_features, data.item_features, data.context_features)
        self.embed = nn.ModuleList(Embeddings([f.size for f in side], width) for side in sides if side)
        size = sum(side.width for side in self.embed)  # type: ignore[misc]
        self.cross = nn.ModuleList(nn.Linear(size, size) for _ in range(2))
        self.deep = nn.Sequential(
            nn.Sequential(nn.Linear(size, 12), nn.ReLU()), nn.Sequential(nn.Linear(12, 6), nn.ReLU())
        )
        self.head = nn.Linear(size + 6, labels)

    def forward(self, rows: Rows) -> Tensor:
        sides = [codes for codes in (rows.user_codes, rows.item_codes, rows.context) if codes.shape[1]]
        first = x = torch.cat([embed(codes) for embed, codes in zip(self.embed, sides, strict=True)], -1)
        for layer in self.cross:
            x = first * layer(x) + x
        found: Tensor = self.head(torch.cat([x, self.deep(first)], -1))
        return found


def made(module: type[nn.Module], data: Dataset, *, seed: int = 0, **values: object) -> nn.Module:
    """A module with random weights, always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return module(data, **values)
