"""Score a catalogue on a device with ONNX Runtime; PyTorch and fedpa are not needed.

    python score_on_device.py EXPORT --user 42 --rows EXPORT/rows/42.csv -k 10

EXPORT is a folder of `fedpa export`; the rows are the user's own (`item`, `click`, `time`), of which the model reads
what it may. Prints the best items that the user has no row of, as JSON.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from train_on_device import Array, Device, Rows


class Scorer:
    """The graph, ready to run on one thread."""

    def __init__(self, folder: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            folder / "foundation.onnx", options, providers=["CPUExecutionProvider"]
        )
        self.inputs = {each.name for each in self.session.get_inputs()}

    def feeds(self, device: Device, rows: Rows) -> dict[str, Array]:
        """Everything that the graph reads to score the whole catalogue now."""
        items = device.items
        every = np.arange(len(items["ids"]))
        counts = np.stack(np.broadcast_arrays(*(items[n] for n in ("views", "clicks", "all_views", "all_clicks"))), 1)
        latest = {n: np.full(len(every), column[-1] if len(column) else 0) for n, column in rows.own.items()}
        found = device.inputs(rows, every, np.full(len(every), len(rows.item)), counts, latest)
        found |= device.weights()  # the item biases are a table, here of every item in its order
        return {name: value for name, value in found.items() if name in self.inputs}

    def scores(self, feeds: dict[str, Array]) -> Array:
        """Click probabilities [items]."""
        found: Any = self.session.run(["score"], feeds)
        return np.asarray(found[0])


def main() -> None:
    """Print the best unseen items."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("export", type=Path)
    parser.add_argument("--user", required=True)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("-k", type=int, default=10)
    options = parser.parse_args()
    device, scorer = Device(options.export, options.user), Scorer(options.export)
    rows = device.rows(options.rows)
    scores = scorer.scores(scorer.feeds(device, rows))
    unseen = np.setdiff1d(np.arange(len(scores)), rows.item)
    best = unseen[np.argsort(-scores[unseen], kind="stable")[: options.k]]
    print(json.dumps({"items": device.items["ids"][best].tolist(), "scores": scores[best].tolist()}))


if __name__ == "__main__":
    main()
