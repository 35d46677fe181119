"""A data set made of arrays, for tests that need no folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from fedpa.data.dataset import PRIVATE, CodedFeature, Dataset, Part

Array = npt.NDArray[Any]


class ArrayDataset(Dataset):
    """All users private; rows sorted by user, then time."""

    def __init__(
        self,
        *,
        user_ids: Array,
        user_codes: Array,
        item_codes: Array,
        user: Array,
        item: Array,
        label: Array,
        part: Array,
        groups: dict[str, Array],
        sizes: dict[str, dict[str, int]],
        context: Array | None = None,
        features: str = "reference",
    ) -> None:
        self.path = Path("arrays")
        self._ids = pl.Series(user_ids)
        self._item_count = len(item_codes)
        self._sizes = sizes
        self.hash = "arrays"
        self.manifest = {
            "settings": {"features": features},
            "features": {s: [{"name": n, "size": k} for n, k in sizes.get(s, {}).items()] for s in _SIDES},
            "groups": {},
        }
        self._group_sizes = sizes["groups"]
        self.__dict__.update(
            side=np.full(len(user_ids), PRIVATE, np.uint8),
            user_codes=user_codes.astype(np.int32),
            item_codes=item_codes.astype(np.int32),
            context_codes=np.zeros((len(user), 0), np.int16) if context is None else context.astype(np.int16),
            groups={k: v.astype(np.int32) for k, v in groups.items()},
        )
        self._rows: dict[str, Array] = {
            "user": user.astype(np.uint32),
            "item": item.astype(np.uint32),
            "label": label.astype(np.int8),
            "part": part.astype(np.uint8),
        }

    n_users = property(lambda self: len(self._ids))  # type: ignore[assignment]
    n_items = property(lambda self: self._item_count)  # type: ignore[assignment]
    n_rows = property(lambda self: len(self._rows["user"]))  # type: ignore[assignment]
    user_views = property(lambda self: np.zeros(self.n_rows, np.uint32))  # type: ignore[assignment]
    user_clicks = property(lambda self: np.zeros(self.n_rows, np.uint32))  # type: ignore[assignment]
    user_ids = property(lambda self: self._ids)  # type: ignore[assignment]
    user = property(lambda self: self._rows["user"])  # type: ignore[assignment]
    item = property(lambda self: self._rows["item"])  # type: ignore[assignment]
    label = property(lambda self: self._rows["label"])  # type: ignore[assignment]
    part = property(lambda self: self._rows["part"])  # type: ignore[assignment]
    group_sizes = property(lambda self: self._group_sizes)  # type: ignore[assignment]
    user_features = property(lambda self: _features(self._sizes, "user"))  # type: ignore[assignment]
    item_features = property(lambda self: _features(self._sizes, "item"))  # type: ignore[assignment]
    context_features = property(lambda self: _features(self._sizes, "context"))  # type: ignore[assignment]


_SIDES = ("user", "item", "context")


def _features(sizes: dict[str, dict[str, int]], side: str) -> tuple[CodedFeature, ...]:
    return tuple(CodedFeature(n, k) for n, k in sizes.get(side, {}).items())


def toy(users: int, rows_of: Array, seed: int = 0, *, items: int = 20, context: bool = False) -> ArrayDataset:
    """Random features; a click depends on the user's and the item's first code, so that there is taste to learn."""
    rng = np.random.default_rng(seed)
    user_codes = rng.integers(0, 3, (users, 2))
    item_codes = np.stack([np.arange(items) % 4, rng.integers(0, 3, items)], 1)
    user = np.repeat(np.arange(users), rows_of)
    item = rng.integers(0, items, len(user))
    taste = rng.normal(size=(users, 4)) * 2
    label = rng.random(len(user)) < 1 / (1 + np.exp(-taste[user, item_codes[item, 0]]))
    within = np.arange(len(user)) - np.repeat(np.cumsum(rows_of) - rows_of, rows_of)
    share = within / np.repeat(rows_of, rows_of)
    part = np.where(share < 0.6, Part.TRAIN, np.where(share < 0.8, Part.VAL, Part.TEST))
    return ArrayDataset(
        user_ids=np.arange(users) * 7 + 3,
        user_codes=user_codes,
        item_codes=item_codes,
        user=user,
        item=item,
        label=label,
        part=part,
        groups={"kind": user_codes[:, 0], "size": rng.integers(0, 2, users)},
        sizes={
            "user": {"kind": 3, "size": 3},
            "item": {"type": 4, "colour": 3},
            "context": {"rate": 5} if context else {},
            "groups": {"kind": 3, "size": 2},
        },
        context=rng.integers(0, 5, (len(user), 1)) if context else None,
    )
