"""Measure how memory grows with users when the top of a large transformer is adapted.

    python benchmarks/wrap_memory.py --users 10,1000

A transformer of about 100 million frozen weights (from a configuration, nothing is downloaded) reads 8 tokens of every
item; FedPA's adapters sit in all linear layers of its top two layers. Every number of users is a process of its own,
which trains one round at a fixed number of rows per chunk. The figure is the growth of the round's peak resident memory
over the bytes of the users' own adapters.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import fedpa
from fedpa.federation.rows import ShardRows
from fedpa.federation.server import Server
from fedpa.federation.shard import Shard
from fedpa.methods.fedpa import FedPA
from fedpa.models.wrap.model import WrappedModel
from fedpa.models.wrap.rows import Rows, RowSource
from fedpa.models.wrap.wrapped import Wrapped
from memory import peak_memory

CPU = torch.device("cpu")
ROWS_EACH, TOKENS, ITEMS = 8, 8, 500
SETTINGS = {"rounds": 1, "personal_decay": 0.0, "personal_bias": False, "item_bias": False, "epochs": 1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", default="10,1000")
    parser.add_argument("--rows-per-chunk", type=int, default=64)
    parser.add_argument("--layers", type=int, default=12, help="of the transformer; the top two are adapted")
    parser.add_argument("--one-size", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one_size:
        print(json.dumps(one_size(options.one_size, options.rows_per_chunk, options.layers)))
        return
    sizes = [in_own_process(int(users), options.rows_per_chunk, options.layers) for users in options.users.split(",")]
    few, many = sizes[0], sizes[-1]
    growth = many["peak_bytes"] - few["peak_bytes"]
    adapters = many["adapter_bytes"] - few["adapter_bytes"]
    report = {
        "torch": torch.__version__,
        "rows_per_chunk": options.rows_per_chunk,
        "sizes": sizes,
        "growth_bytes": growth,
        "adapter_bytes": adapters,
        "growth_over_adapters": growth / adapters,
    }
    print(json.dumps(report, indent=2))


def in_own_process(users: int, rows_per_chunk: int, layers: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--one-size", str(users), "--rows-per-chunk", str(rows_per_chunk)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [*command, "--layers", str(layers)], check=True, capture_output=True, text=True, env=environment
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


class TextRanker(nn.Module):
    """Items by their text, users by one feature."""

    def __init__(self, layers: int) -> None:
        from transformers import BertConfig, BertModel

        super().__init__()
        config = BertConfig(vocab_size=20_000, num_hidden_layers=layers, max_position_embeddings=TOKENS)
        self.text = BertModel(config, add_pooling_layer=False)
        self.user = nn.Embedding(10, 16)
        self.head = nn.Linear(config.hidden_size + 16, 1)
        self.register_buffer("tokens", torch.randint(0, 20_000, (ITEMS, TOKENS)))

    def forward(self, rows: Rows) -> Tensor:
        """Logits [rows]."""
        text = self.text(input_ids=self.get_buffer("tokens")[rows.items]).last_hidden_state.mean(1)
        found: Tensor = self.head(torch.cat([text, self.user(rows.user_codes[:, 0])], 1))
        return found.squeeze(1)


class Synthetic:
    """The few things that a model asks of a data set."""

    def __init__(self, users: int, rng: np.random.Generator) -> None:
        self.path = Path("synthetic")
        self.n_items = ITEMS
        self.user_codes = rng.integers(0, 10, (users, 1), dtype=np.int32)
        self.item_codes = np.zeros((ITEMS, 1), np.int32)
        self.manifest = {"settings": {"features": "reference"}}
        self.groups = {"kind": self.user_codes[:, 0]}
        self.group_sizes = {"kind": 10}


def one_size(users: int, rows_per_chunk: int, layers: int) -> dict[str, Any]:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    data: Any = Synthetic(users, rng)
    rows = some_rows(users, data, rng)
    module = TextRanker(layers)
    top = r"text\.encoder\.layer\.({}|{})\..*".format(layers - 2, layers - 1)  # noqa: UP032
    wrapped: Wrapped = fedpa.wrap(module, top, train=["head"], rows_per_chunk=rows_per_chunk)
    source = RowSource(data, CPU)
    wrapped.check(source.of_shard(rows, slice(0, 12)))
    method = FedPA.configured("default", SETTINGS, wrapped)
    if not isinstance(method, FedPA):
        raise TypeError("FedPA was expected")
    model: WrappedModel = method.build_wrapped(wrapped, data, 0, CPU)
    with tempfile.TemporaryDirectory() as folder:
        store = Shard.new_store(model, rows, method.settings, Path(folder))
        shard = Shard(model, rows, method.settings, store, seed=0, rule=method, rows_per_chunk=rows_per_chunk)
        server = Server(model.layout, torch.float32)
        made = peak_memory()
        Path("/proc/self/clear_refs").write_text("5")  # the peak is the round's from here on
        begin = time.perf_counter()
        server.step(shard.round(server.state, 1))
        seconds = time.perf_counter() - begin
    return {
        "users": users,
        "frozen_weights": sum(value.numel() for value in module.parameters()),
        "targets": len(wrapped.targets),
        "once_per_distinct_item": len(wrapped.once),
        "adapter_weights_per_user": model.layout.personal_size,
        "adapter_bytes": users * model.layout.personal_size * 4,
        "peak_bytes_before": made,
        "peak_bytes": peak_memory(),
        "seconds": seconds,
    }


def some_rows(users: int, data: Synthetic, rng: np.random.Generator) -> ShardRows:
    """Eight rows each, all to train on."""
    count = users * ROWS_EACH
    none = np.zeros(count, np.int64)
    return ShardRows(
        users=np.arange(users),
        keys=np.arange(users, dtype=np.uint64),
        groups={key: torch.from_numpy(value.astype(np.int64)) for key, value in data.groups.items()},
        begin=np.arange(users) * ROWS_EACH,
        train=np.full(users, ROWS_EACH),
        total=np.full(users, ROWS_EACH),
        row=np.arange(count),
        user=np.repeat(np.arange(users), ROWS_EACH),
        part=np.full(count, 2, np.uint8),
        time=none,
        items=torch.from_numpy(rng.integers(0, ITEMS, count)),
        context=torch.zeros(count, 0, dtype=torch.int64),
        labels=torch.from_numpy((rng.random(count) < 0.4).astype(np.float32)),
        own_views=none,
        own_clicks=none,
        item_views=none,
        item_clicks=none,
        open_views=none,
        open_clicks=none,
    )


if __name__ == "__main__":
    main()
