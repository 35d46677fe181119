"""Item and user biases above the frozen foundation against a plain loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from arrays import toy, toy_engine
from fedpa.data.dataset import Part
from fedpa.methods import Biases

EXACT: dict[str, Any] = {"rtol": 0, "atol": 1e-12}
USERS, LR = 6, 0.4


def test_biases_are_those_of_a_plain_loop(tmp_path: Path) -> None:
    """The foundation's logit, plus c_i and b_u: gradients are means of probability minus click over a user's rows."""
    decay, prior, rate = 6.0, 2.0, 3.0
    chosen = {"personal_decay": decay, "table_prior": prior, "item_rate": rate, "lr": LR, "dtype": "float64"}
    found = toy(USERS, np.array([5, 9, 14, 20, 9, 7]), context=True)
    engine = toy_engine(tmp_path, found, cast(Biases, Biases.configured("default", chosen)))
    codes = found.user_codes[found.user.astype(int)], found.item_codes[found.item.astype(int)], found.context_codes
    with torch.no_grad():
        base = engine.foundation.model(*(torch.from_numpy(c).long() for c in codes)).numpy()
    items, own = np.zeros(found.n_items), np.zeros(USERS)
    mine, item = found.user.astype(int), found.item.astype(int)

    def clicks(logits: Any) -> Any:
        return 1 / (1 + np.exp(-logits))

    np.testing.assert_allclose(engine.scores(), clicks(base), **EXACT)
    for number in (1, 2, 3):
        change, touched = np.zeros(found.n_items), np.zeros(found.n_items)
        for user in range(USERS):
            rows = np.flatnonzero((mine == user) & (found.part == Part.TRAIN))
            c, b = items.copy(), own[user]
            for _ in range(2):
                error = (clicks(base[rows] + c[item[rows]] + b) - found.label[rows]) / len(rows)
                b = (b - LR * error.sum()) / (1 + LR * decay / len(rows))
                np.add.at(c, item[rows], -LR * rate * error)
            own[user] = b
            change += c - items
            touched[np.unique(item[rows])] += 1
        items = items + change / (touched + prior)
        upload = engine.round(number)
        np.testing.assert_allclose(engine.server.named()["item_bias"][:, 0].numpy(), items, **EXACT)
        np.testing.assert_allclose(engine.scores(), clicks(base + items[item] + own[mine]), **EXACT)
        # A bias and a count per item go up, the biases come down.
        both = (upload.weights_up, upload.weights_down)
        assert both == (USERS * 2 * found.n_items, USERS * found.n_items)
    assert engine.server.named().keys() == {"item_bias"}
