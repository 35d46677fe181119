"""How far from the oracle of a synthetic data set an observer stays who knows the world but not the users.

    python benchmarks/ceiling.py --dataset SYNTHETIC --users 2000 --items 1000 --seed 1

The observer knows every item's latent, the drift of popularity and the tastes of groups, as `fedpa data synth` drew
them with the same arguments, and infers a user's taste and readiness to click from its training and validation rows
alone: the most probable weights of a logistic regression under the very prior that they were drawn from.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from fedpa import load_dataset
from fedpa.data import synthetic
from fedpa.data.dataset import Part
from fedpa.evaluation.metrics import auc, gauc


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", type=Path, required=True)
    parser.add_argument("--users", type=int, required=True)
    parser.add_argument("--items", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--days", type=int, default=14)
    print(json.dumps(ceiling(**vars(parser.parse_args())), indent=2))


def ceiling(dataset: Path, users: int, items: int, seed: int, days: int) -> dict[str, Any]:
    """AUC and GAUC of test rows of the observer and of the oracle."""
    data = load_dataset(dataset)
    if data.oracle is None:
        raise SystemExit(f"{dataset}: not synthetic, it has no oracle")
    known, vectors = world(data, users, items, seed, days)
    width = vectors.shape[1]
    precision = np.diag(1 / np.concatenate([[synthetic._BIAS**2], synthetic._USER**2 * synthetic._WEIGHTS]))
    logits = np.zeros(data.n_rows)
    for user in np.unique(data.user[data.rows("test")]):
        rows = np.arange(*data.user_starts[user : user + 2])
        seen, judged = rows[np.isin(data.part[rows], (Part.TRAIN, Part.VAL))], rows[data.part[rows] == Part.TEST]
        weights = np.zeros(width)
        for _ in range(20):  # Newton's method
            rate = 1 / (1 + np.exp(-(known[seen] + vectors[seen] @ weights)))
            curvature = (vectors[seen].T * (rate * (1 - rate))) @ vectors[seen] + precision
            gradient = vectors[seen].T @ (rate - data.label[seen]) + precision @ weights
            weights -= np.linalg.solve(curvature, gradient)
        spread = np.einsum("rd,de,re->r", vectors[judged], np.linalg.inv(curvature), vectors[judged])
        # The mean click rate over what the weights may be (MacKay, 1992), for rows of one user beside each other.
        logits[judged] = (known[judged] + vectors[judged] @ weights) / np.sqrt(1 + np.pi * spread / 8)
    here = data.rows("test")

    def values(scores: Any) -> dict[str, float | None]:
        labels = data.label[here]
        return {"auc": auc(labels, scores[here]), "gauc": gauc(data.user[here], labels, scores[here]).value}

    return {"observer": values(logits), "oracle": values(data.oracle)}


def world(data: Any, users: int, items: int, seed: int, days: int) -> tuple[Any, Any]:
    """What is known of every row's log-odds [rows], and what its user's weights multiply [rows, 1 + latents]."""
    drawn = synthetic._world(items, synthetic._generator(seed, 2**63))
    codes: list[list[Any]] = [[], [], []]
    for first in range(0, users, synthetic._BLOCK):
        ids = np.arange(first, min(first + synthetic._BLOCK, users))
        _, found = synthetic._users(ids, synthetic._generator(seed, first // synthetic._BLOCK))
        for every, own in zip(codes, found, strict=True):
            every.append(own)
    follow, register, is_open = (np.concatenate(each) for each in codes)
    user, item = data.user_ids.to_numpy()[data.user], data.item_ids.to_numpy()[data.item]
    begin = (synthetic._END - days).astype("datetime64[ms]").astype(np.int64) - 8 * (synthetic._DAY // 24)
    angle = synthetic._TURN_POPULARITY * (data.time - begin) / (days * synthetic._DAY)
    latent, popularity = drawn.latent[item], drawn.popularity[item]
    taste = drawn.groups[0][follow[user], is_open[user]] + drawn.groups[1][register[user], is_open[user]]
    known = synthetic._INTERCEPT + synthetic._GROUP * np.einsum("rd,rd->r", taste, latent)
    known += synthetic._POPULARITY * (np.cos(angle) * popularity[:, 0] + np.sin(angle) * popularity[:, 1])
    return known, np.concatenate([np.ones((data.n_rows, 1)), latent], 1)


if __name__ == "__main__":
    main()
