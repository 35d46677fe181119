"""MovieLens as federated recommenders are judged on it: all ratings are positives, a user's latest is the test item."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import polars as pl
from numpy.typing import NDArray

from fedpa.data import movielens
from fedpa.data.dataset import PRIVATE, CodedFeature, Dataset, Part
from fedpa.data.validate import validate
from fedpa.errors import ConfigError, DataError

__all__ = ["MIN_RATINGS", "SOURCES", "Ratings", "TrainingRows", "read_ratings"]

SOURCES: dict[str, Literal["100k", "1m"]] = {"movielens-100k": "100k", "movielens-1m": "1m"}
MIN_RATINGS = 3
"""One for the test, one for validation and one to train on."""

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Ratings:
    """Who rated what, sorted by user; within a user the latest first.

    Attributes
    ----------
    name : str
        For instance ``"movielens-1m"``.
    user_ids, item_ids : polars.Series
        Ids of the users and of the rated items, ascending; everywhere else both are numbers, their places here.
    user, item : int64 array [ratings]
    nth : int64 array [ratings]
        Place among the user's ratings: 0 is the test item, 1 the validation item, the others are training items.
    """

    name: str
    user_ids: pl.Series
    item_ids: pl.Series
    user: Ints
    item: Ints
    nth: Ints

    @classmethod
    def of(cls, name: str, frame: pl.DataFrame) -> Ratings:
        """Number users and items and put the ratings in order.

        Of ratings of one time the first one in the file counts as the latest, as in the published code.

        Parameters
        ----------
        name : str
        frame : polars.DataFrame
            ``user_id``, ``item_id`` and ``time``, in the order of the file.

        Raises
        ------
        DataError
            If a user rated an item twice, or has fewer than `MIN_RATINGS` ratings.
        """
        user_ids, item_ids = (frame[column].unique().sort() for column in ("user_id", "item_id"))
        user = np.searchsorted(user_ids.to_numpy(), frame["user_id"].to_numpy()).astype(np.int64)
        item = np.searchsorted(item_ids.to_numpy(), frame["item_id"].to_numpy()).astype(np.int64)
        order = np.lexsort((np.arange(len(user)), -frame["time"].to_numpy(), user))
        user, item = user[order], item[order]
        pairs, times = np.unique(user * len(item_ids) + item, return_counts=True)
        if len(pairs) < len(user):
            twice = int(pairs[times > 1][0])
            of, what = user_ids[twice // len(item_ids)], item_ids[twice % len(item_ids)]
            raise DataError(f"{name}: user {of} rated item {what} more than once", "unpack the archive again")
        count = np.bincount(user, minlength=len(user_ids))
        if count.min(initial=MIN_RATINGS) < MIN_RATINGS:
            few = int(np.flatnonzero(count < MIN_RATINGS)[0])
            raise DataError(
                f"{name}: user {user_ids[few]} has {count[few]} ratings, expected at least {MIN_RATINGS}",
                "the official files have 20 or more of every user; unpack the archive again",
            )
        nth = np.arange(len(user)) - np.repeat(np.cumsum(count) - count, count)
        return cls(name, user_ids, item_ids, user, item, nth)

    @property
    def n_users(self) -> int:
        """Number of users."""
        return len(self.user_ids)

    @property
    def n_items(self) -> int:
        """Number of items that anybody rated: the catalogue."""
        return len(self.item_ids)

    @property
    def test(self) -> Ints:
        """Every user's test item [users]."""
        found: Ints = self.item[self.nth == 0]
        return found

    @property
    def validation(self) -> Ints:
        """Every user's validation item [users]."""
        found: Ints = self.item[self.nth == 1]
        return found


def read_ratings(name: str, raw: Path) -> Ratings:
    """Read official files.

    Parameters
    ----------
    name : {"movielens-100k", "movielens-1m"}
    raw : Path
        The folder of the files, or the one that the archive was unpacked in.

    Raises
    ------
    ConfigError
        If the name is unknown.
    DataError
        If a file is missing or is not what it must be.
    """
    if name not in SOURCES:
        raise ConfigError(f"cannot reproduce {name!r}", f"use one of {', '.join(SOURCES)}")
    source = movielens.load(Path(raw), SOURCES[name])
    validate(source)
    return Ratings.of(name, source.interactions.select("user_id", "item_id", "time").collect())


class TrainingRows(Dataset):
    """A data set of training rows alone, in memory: all users private, no features.

    Parameters
    ----------
    ratings : Ratings
    user, item, label : int64 array [rows]
        Sorted by user.
    """

    def __init__(self, ratings: Ratings, user: Ints, item: Ints, label: Ints) -> None:
        self.path = Path(ratings.name)
        self.hash = ratings.name
        self.manifest = {"settings": {"features": "causal"}}
        self._ratings, self._user, self._item, self._label = ratings, user, item, label
        none = np.zeros(len(user), np.uint32)
        self._none: NDArray[np.uint32] = none
        self.__dict__.update(
            side=np.full(ratings.n_users, PRIVATE, np.uint8),
            part=np.full(len(user), Part.TRAIN, np.uint8),
            groups={},
            context_codes=np.zeros((len(user), 0), np.int16),
        )

    @property
    def time(self) -> Ints:
        """No row has a time."""
        return self._none.astype(np.int64)

    @property
    def n_users(self) -> int:
        """Number of users."""
        return self._ratings.n_users

    @property
    def n_items(self) -> int:
        """Number of items that anybody rated."""
        return self._ratings.n_items

    @property
    def n_rows(self) -> int:
        """Number of training rows."""
        return len(self._user)

    @property
    def user_ids(self) -> pl.Series:
        """Ids of all users, ascending."""
        return self._ratings.user_ids

    @property
    def item_ids(self) -> pl.Series:
        """Ids of all items, ascending."""
        return self._ratings.item_ids

    @property
    def user(self) -> npt.NDArray[np.uint32]:
        """User of every row [rows]."""
        return self._user.astype(np.uint32)

    @property
    def item(self) -> npt.NDArray[np.uint32]:
        """Item of every row [rows]."""
        return self._item.astype(np.uint32)

    @property
    def label(self) -> npt.NDArray[np.int8]:
        """1 for a rating, 0 for a drawn item [rows]."""
        return self._label.astype(np.int8)

    @property
    def group_sizes(self) -> dict[str, int]:
        """No groups."""
        return {}

    @property
    def user_features(self) -> tuple[CodedFeature, ...]:
        """No features."""
        return ()

    item_features = context_features = user_features

    @property
    def user_views(self) -> npt.NDArray[np.uint32]:
        """Nothing is counted: zeros [rows]."""
        return self._none

    user_clicks = item_views = item_clicks = open_views = open_clicks = user_views
