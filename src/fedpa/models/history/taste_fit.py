"""Train a taste on open users' sequences, all prefixes at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from fedpa.data.past import Past, Queries
from fedpa.data.statistics import smoothed_rate
from fedpa.draws import derive_seed, generator
from fedpa.models.history.light import ITEM_STRENGTH
from fedpa.models.history.taste import Taste
from fedpa.models.snapshot import snapshot

__all__ = ["fit_taste"]

_LONGEST = 256
_USERS, _EPOCHS, _PATIENCE, _LR = 64, 80, 4, 5e-3


class _Clicks(nn.Module):
    """A click's log-odds before taste: the item's smoothed click rate, corrected by the item's features."""

    def __init__(self, codes: int) -> None:
        super().__init__()
        self.table = nn.Embedding(codes, 1)
        self.scale = nn.Parameter(torch.tensor([0.0, 1.0]))
        nn.init.zeros_(self.table.weight)

    def forward(self, places: Tensor, rate: Tensor) -> Tensor:
        """Log-odds [...] of rows with places of codes [..., features]."""
        found: Tensor = self.scale[0] + self.scale[1] * rate + self.table(places).sum((-2, -1))
        return found


def fit_taste(
    sizes: tuple[int, ...],
    width: int,
    past: Past,
    codes: NDArray[np.integer],
    train: tuple[Queries, NDArray[np.integer]],
    held_out: tuple[Queries, NDArray[np.integer]],
    seed: int,
) -> tuple[Taste, dict[str, Any]]:
    """Train on all prefixes of users' sequences.

    Parameters
    ----------
    sizes : tuple of int
        Numbers of codes of the item features.
    width : int
    past : Past
    codes : ndarray of int, shape ``[n_items, features]``
    train, held_out : (Queries, ndarray)
        Open users' rows and their labels ``[rows]``.
    seed : int

    Returns
    -------
    Taste
        With the weights of the epoch of lowest held-out log-loss.
    dict
        ``epochs``, ``best_epoch`` and ``logloss``.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "taste/start"))
        taste, clicks = Taste(sizes, width), _Clicks(sum(sizes))
    table = torch.from_numpy(codes.astype(np.int64))
    both = nn.ModuleList([taste, clicks])
    optimizer = torch.optim.Adam(both.parameters(), lr=_LR)
    rows, judged = _by_user(*train), _by_user(*held_out)
    best, best_loss, best_epoch, stale, epoch = snapshot(both), float("inf"), 0, 0, 0
    for epoch in range(1, _EPOCHS + 1):
        order = torch.randperm(len(rows), generator=generator(seed, "taste/shuffle", epoch)).tolist()
        for begin in range(0, len(order), _USERS):
            loss, count = _loss(taste, clicks, past, table, [rows[k] for k in order[begin : begin + _USERS]])
            optimizer.zero_grad()
            (loss / count).backward()
            optimizer.step()
        with torch.no_grad():
            pieces = [
                _loss(taste, clicks, past, table, judged[begin : begin + _USERS])
                for begin in range(0, len(judged), _USERS)
            ]
        value = float(sum(loss for loss, _ in pieces)) / sum(count for _, count in pieces)
        if value < best_loss:
            best, best_loss, best_epoch, stale = snapshot(both), value, epoch, 0
        else:
            stale += 1
            if stale >= _PATIENCE:
                break
    both.load_state_dict(best)
    return taste.eval().requires_grad_(False), {"epochs": epoch, "best_epoch": best_epoch, "logloss": best_loss}


_Rows = tuple[int, NDArray[np.integer], NDArray[np.integer], NDArray[np.floating], NDArray[np.integer]]


def _by_user(queries: Queries, label: NDArray[np.integer]) -> list[_Rows]:
    """One entry per user: the user, and views, item, log-odds of the item's click rate, and label of its rows."""
    opened = queries.all_clicks, queries.all_views
    item = smoothed_rate(queries.item_clicks[:, 0], queries.item_views[:, 0], *opened, ITEM_STRENGTH)
    rate = np.log(item / (1 - item))
    cut = np.flatnonzero(np.diff(queries.user)) + 1
    columns = (queries.views, queries.items[:, 0], rate, label)
    return [
        (int(owner[0]), *own)
        for owner, *own in zip(*(np.split(column, cut) for column in (queries.user, *columns)), strict=True)
    ]


def _loss(taste: Taste, clicks: _Clicks, past: Past, codes: Tensor, users: list[_Rows]) -> tuple[Tensor, int]:
    """Sum of the log-losses of all rows of some users, and their number."""
    owner = np.array([user for user, *_ in users])
    length = min(_LONGEST, max(int(views.max()) for _, views, *_ in users))
    place = past.starts[owner][:, None] + np.arange(length)
    real = place < past.starts[owner + 1][:, None]
    place = np.where(real, place, 0)
    seen, liked = torch.from_numpy(past.item[place]), torch.from_numpy(past.click[place].astype(np.float32))
    moment, matrix = taste.prefixes(*taste.items(codes[seen]), liked, torch.from_numpy(real.astype(np.float32)))
    row = torch.from_numpy(np.repeat(np.arange(len(users)), [len(views) for _, views, *_ in users]))
    views, item, rate, label = (
        torch.from_numpy(np.concatenate(column)) for column in list(zip(*users, strict=True))[1:]
    )
    views = views.clamp(max=length)
    weights = taste.solve(moment[row, views], matrix[row, views])
    candidate = codes[item]
    vector, _ = taste.items(candidate)
    logits = clicks(candidate + taste.get_buffer("offsets"), rate.float()) + (weights * vector).sum(-1)
    return binary_cross_entropy_with_logits(logits, label.float(), reduction="sum"), len(label)
