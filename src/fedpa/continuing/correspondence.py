"""Which users, items and group values of a later data set are which of the run's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from fedpa.data.dataset import PRIVATE, Dataset
from fedpa.errors import DataError
from fedpa.federation.rows import group_values

__all__ = ["Correspondence"]

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Correspondence:
    """Where everything of today was before.

    Attributes
    ----------
    users : ndarray of int64, shape ``[n_users]``
        For every user of today's data set its number in the run's, -1 for a new one.
    private : ndarray of int64, shape ``[private users]``
        For every private user of today, in order, its place among the run's private users, -1 for a new one.
    items : ndarray of int64, shape ``[n_items]``
        For every item of today its number before, -1 for a new one.
    old_items : int
        How many items there were.
    groups : dict of str to ndarray of int64, shape ``[values]``
        For every value of a group, as a row of the server's table, its row before, -1 for a new one.
    same_codes : bool
        Whether codes of features mean what they meant.
    facts : dict
        How many ``users`` and ``items`` are known, new and left, and by group how many private users who were so before
        have another value (``changed``).
    """

    users: Ints
    private: Ints
    items: Ints
    old_items: int
    groups: dict[str, Ints]
    same_codes: bool
    facts: dict[str, Any]

    @classmethod
    def of(cls, before: Dataset, today: Dataset) -> Correspondence:
        """Compare two data sets by the ids of their users and items and by the values of their groups.

        Raises
        ------
        DataError
            If ids are numbers in one and text in the other.
        """
        users = _places(today.user_ids, before.user_ids, f"{today.path}: its user ids")
        items = _places(today.item_ids, before.item_ids, f"{today.path}: its item ids")
        old, new = (np.flatnonzero(data.side == PRIVATE) for data in (before, today))
        place = np.full(before.n_users + 1, -1)
        place[old] = np.arange(len(old))
        private = place[users[new]]
        groups = {}
        for name, facts in today.manifest["groups"].items():
            earlier = before.manifest["groups"].get(name, {"vocabulary": []})["vocabulary"]
            known = {str(value): row for row, value in enumerate(earlier)}
            groups[name] = np.array([known.get(str(value), -1) for value in facts["vocabulary"]], np.int64)
        found = {
            "users": _counts(private, len(old)),
            "items": _counts(items, before.n_items),
            "changed": _changed(before, today, groups, old[private[private >= 0]], new[private >= 0]),
        }
        same_codes = before.manifest["features"] == today.manifest["features"]
        return cls(users, private, items, before.n_items, groups, same_codes, found)


def _places(today: pl.Series, before: pl.Series, what: str) -> Ints:
    """Place of every id among ids in ascending order, -1 where it is not there."""
    if today.dtype != before.dtype:
        raise DataError(f"{what} are {today.dtype}, those of the run are {before.dtype}", "read them as the same type")
    if not len(before):
        return np.full(len(today), -1)
    place = np.minimum(before.search_sorted(today, side="left").to_numpy().astype(np.int64), len(before) - 1)
    return np.where((before.gather(place) == today).to_numpy(), place, -1)


def _counts(places: Ints, before: int) -> dict[str, int]:
    known = int((places >= 0).sum())
    return {"known": known, "new": len(places) - known, "left": before - known}


def _changed(before: Dataset, today: Dataset, groups: dict[str, Ints], old: Ints, new: Ints) -> dict[str, int]:
    """By group how many of some users, numbered as before and as today, have another value."""
    then, now = group_values(before), group_values(today)
    found = {}
    for name, rows in groups.items():
        if name in then:
            # The last row stands for an unknown value, which is -1 in both.
            value = np.append(rows, -1)[now[name][new]]
            unheard = (value < 0) & (now[name][new] >= 0)
            found[name] = int(((value != then[name][old]) | unheard).sum())
    return found
