"""A prepared data set folder, opened without reading it."""

from __future__ import annotations

import bisect
import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from fedpa.artifacts import read_manifest, sha256
from fedpa.data.divide import COLD, OPEN, PRIVATE, SIDES
from fedpa.data.encode import ROW, Numeric, from_json
from fedpa.data.past import Past
from fedpa.data.split import PARTS, Part
from fedpa.data.statistics import ITEM_STRENGTH, USER_STRENGTH, Counted, smoothed_rate
from fedpa.errors import ArtifactError, DataError

__all__ = [
    "COLD",
    "OPEN",
    "PARTS",
    "PRIVATE",
    "SIDES",
    "CodedFeature",
    "Dataset",
    "ItemCounts",
    "Part",
    "describe",
    "load_dataset",
]

_PIECE = 1 << 21
_KEYS = ("source", "settings", "label", "labels", "counts", "features", "groups", "files")
_AGAIN = "make the data set again with `fedpa prepare SOURCE --raw DIR --out DATASET`"


class CodedFeature(NamedTuple):
    """A feature as a model sees it: codes from 0 to ``size - 1``."""

    name: str
    size: int


class ItemCounts(NamedTuple):
    """Open users' rows and clicks before some instants: per item [instants, n_items], and of all items [instants]."""

    views: NDArray[np.int64]
    clicks: NDArray[np.int64]
    open_views: NDArray[np.int64]
    open_clicks: NDArray[np.int64]


class Dataset:
    """Interactions of open and private users with their codes, splits and causal counts.

    Nothing but the manifest is read until it is asked for; what was read is kept. Arrays may be views of
    files: do not write to them.

    Parameters
    ----------
    path : Path
        A folder that `fedpa.data.prepare.prepare` wrote.

    Attributes
    ----------
    path : Path
    manifest : dict
    hash : str
        SHA-256 over the manifest, which holds the hashes of all files: names this very data set.

    Raises
    ------
    ArtifactError
        If the folder, its manifest or one of its files is missing, damaged or from another version.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.manifest: dict[str, Any] = read_manifest(self.path, "dataset")
        content = json.dumps(self.manifest, sort_keys=True, separators=(",", ":")).encode()
        self.hash = hashlib.sha256(content).hexdigest()
        if absent := [key for key in _KEYS if key not in self.manifest]:
            raise ArtifactError(f"{self.path / 'manifest.json'}: lacks {absent[0]!r}", _AGAIN)
        for name, facts in self.manifest["files"].items():
            self._check(name, facts["bytes"])
        self._frames: dict[tuple[str, str], pl.Series] = {}

    @classmethod
    def load(cls, path: Path | str) -> Dataset:
        """Open a data set folder; the same as ``Dataset(path)``."""
        return cls(path)

    def __repr__(self) -> str:
        rows = f"{self.n_rows:,} rows, {self.n_users:,} users, {self.n_items:,} items"
        return f"Dataset({str(self.path)!r}: {rows})"

    def verify(self) -> None:
        """Read every file and compare its hash with the manifest's.

        Raises
        ------
        ArtifactError
            Names the first file that was changed.
        """
        for name, facts in self.manifest["files"].items():
            found = sha256(self.path / name)
            if found != facts["sha256"]:
                raise ArtifactError(
                    f"{self.path / name}: its SHA-256 is {found}, the manifest says {facts['sha256']}", _AGAIN
                )

    # Users

    @property
    def n_users(self) -> int:
        """Number of users, whatever their side."""
        return int(self.manifest["counts"]["users"])

    @property
    def user_ids(self) -> pl.Series:
        """Ids of all users, ascending; a user's row number is its index everywhere."""
        return self._column("users.parquet", "user_id")

    @cached_property
    def side(self) -> NDArray[np.uint8]:
        """`OPEN`, `PRIVATE` or `COLD` for every user, shape ``[n_users]``."""
        return self._column("users.parquet", "side").to_physical().cast(pl.UInt8).to_numpy()

    @property
    def user_features(self) -> tuple[CodedFeature, ...]:
        """Features of `user_codes`, in column order."""
        return self._features("user")

    @cached_property
    def user_codes(self) -> NDArray[np.int32]:
        """Feature codes of every user, shape ``[n_users, n_user_features]``."""
        return self._codes("users.parquet", self.user_features, self.n_users)

    @cached_property
    def groups(self) -> dict[str, NDArray[np.int32]]:
        """Group code of every user, one array of shape ``[n_users]`` per group name."""
        return {name: self._column("users.parquet", f"group:{name}").to_numpy() for name in self.group_sizes}

    @property
    def group_sizes(self) -> dict[str, int]:
        """Number of values of every group."""
        return {name: int(facts["size"]) for name, facts in self.manifest["groups"].items()}

    def user_index(self, user_id: int | str) -> int:
        """Row number of a user.

        Raises
        ------
        DataError
            If there is no such user.
        """
        return _find(self.user_ids, user_id, "user", self.path)

    # Items

    @property
    def n_items(self) -> int:
        """Number of items, those without interactions included."""
        return int(self.manifest["counts"]["items"])

    @property
    def item_ids(self) -> pl.Series:
        """Ids of all items, ascending; an item's row number is its index everywhere."""
        return self._column("items.parquet", "item_id")

    @property
    def item_features(self) -> tuple[CodedFeature, ...]:
        """Features of `item_codes`, in column order."""
        return self._features("item")

    @cached_property
    def item_codes(self) -> NDArray[np.int32]:
        """Feature codes of every item, shape ``[n_items, n_item_features]``."""
        return self._codes("items.parquet", self.item_features, self.n_items)

    def item_index(self, item_id: int | str) -> int:
        """Row number of an item.

        Raises
        ------
        DataError
            If there is no such item.
        """
        return _find(self.item_ids, item_id, "item", self.path)

    # Interactions, sorted by user, then time

    @property
    def n_rows(self) -> int:
        """Number of interactions."""
        return int(self.manifest["counts"]["rows"])

    @property
    def user(self) -> NDArray[np.uint32]:
        """User of every row, ascending, shape ``[n_rows]``."""
        return self._column("interactions.parquet", "user").to_numpy()

    @property
    def item(self) -> NDArray[np.uint32]:
        """Item of every row, shape ``[n_rows]``."""
        return self._column("interactions.parquet", "item").to_numpy()

    @property
    def time(self) -> NDArray[np.int64]:
        """Time of every row in the source's unit, shape ``[n_rows]``."""
        return self._column("interactions.parquet", "time").to_numpy()

    @property
    def label_name(self) -> str:
        """The label that models predict and that clicks are counted by."""
        return str(self.manifest["label"])

    @property
    def label_names(self) -> tuple[str, ...]:
        """All labels, the predicted one first."""
        return tuple(self.manifest["labels"])

    @property
    def label(self) -> NDArray[np.int8]:
        """0 or 1 for every row: the label that models predict, shape ``[n_rows]``."""
        return self._column("interactions.parquet", self.label_name).to_numpy()

    @property
    def labels(self) -> dict[str, NDArray[np.int8]]:
        """0 or 1 for every row, one array of shape ``[n_rows]`` per label."""
        return {name: self._column("interactions.parquet", name).to_numpy() for name in self.label_names}

    @cached_property
    def part(self) -> NDArray[np.uint8]:
        """`Part` code of every row, shape ``[n_rows]``."""
        return self._column("splits.parquet", "part").to_physical().cast(pl.UInt8).to_numpy()

    def rows(self, *parts: str | Part) -> NDArray[np.int64]:
        """Row numbers of one or more parts, ascending.

        Raises
        ------
        DataError
            If there is no part of that name.
        """
        codes = [_part(part) for part in parts]
        chosen = self.part == codes[0] if len(codes) == 1 else np.isin(self.part, codes)
        return np.flatnonzero(chosen).astype(np.int64)

    @cached_property
    def user_starts(self) -> NDArray[np.int64]:
        """Rows of user ``u`` are ``user_starts[u] : user_starts[u + 1]``, shape ``[n_users + 1]``."""
        return np.concatenate([[0], np.cumsum(np.bincount(self.user, minlength=self.n_users))]).astype(np.int64)

    @property
    def item_views(self) -> NDArray[np.uint32]:
        """Rows of open users with the row's item, strictly before the row, shape ``[n_rows]``."""
        return self._column("interactions.parquet", "item_views").to_numpy()

    @property
    def item_clicks(self) -> NDArray[np.uint32]:
        """Clicks among `item_views`, shape ``[n_rows]``."""
        return self._column("interactions.parquet", "item_clicks").to_numpy()

    @property
    def open_views(self) -> NDArray[np.uint32]:
        """Rows of open users strictly before the row, shape ``[n_rows]``."""
        return self._column("interactions.parquet", "open_views").to_numpy()

    @property
    def open_clicks(self) -> NDArray[np.uint32]:
        """Clicks among `open_views`, shape ``[n_rows]``."""
        return self._column("interactions.parquet", "open_clicks").to_numpy()

    @property
    def user_views(self) -> NDArray[np.uint32]:
        """The user's own rows strictly before the row, frozen at the cut, shape ``[n_rows]``."""
        return self._column("interactions.parquet", "user_views").to_numpy()

    @property
    def user_clicks(self) -> NDArray[np.uint32]:
        """Clicks among `user_views`, shape ``[n_rows]``."""
        return self._column("interactions.parquet", "user_clicks").to_numpy()

    @cached_property
    def counted(self) -> Counted:
        """The rows that counts are taken over; drawn rows are never among them.

        Where rows were drawn, they are the rows of the data set that the drawn ones were added to.
        """
        if "counted.parquet" in self.manifest["files"]:
            return Counted(*(self._column("counted.parquet", name).to_numpy() for name in Counted._fields))
        counted = Counted(self.user, self.item, self.time, self.label == 1, self.part)
        return counted.keep(self.part != Part.UNBIASED)

    @cached_property
    def past(self) -> Past:
        """Every user's own rows, oldest first."""
        return Past(self.counted, self.n_users)

    @cached_property
    def oracle(self) -> NDArray[np.float64] | None:
        """True click probability of every row, shape ``[n_rows]``; ``None`` unless the data are synthetic."""
        if "oracle.parquet" not in self.manifest["files"]:
            return None
        return self._column("oracle.parquet", "probability").to_numpy()

    # Context: codes of what the counts say, and of what is known of the row itself

    @property
    def context_features(self) -> tuple[CodedFeature, ...]:
        """``item_rate``, ``item_views``, ``user_rate``, ``user_views``, then `row_features`; empty for `reference`."""
        return self._features("context")

    @property
    def n_item_context(self) -> int:
        """How many of the context features, the first ones, describe the item."""
        return len(self._item_context)

    @cached_property
    def context_codes(self) -> NDArray[np.int16]:
        """Context codes of every row, shape ``[n_rows, n_context]``."""
        codes = np.empty((self.n_rows, len(self.context_features)), dtype=np.int16)
        if self.context_features:
            for start in range(0, self.n_rows, _PIECE):
                piece = slice(start, start + _PIECE)
                opened = self.open_views[piece], self.open_clicks[piece]
                item = self.encode_item(self.item_views[piece], self.item_clicks[piece], *opened)
                own = self.encode_user(self.user_views[piece], self.user_clicks[piece], *opened)
                codes[piece] = np.concatenate([item, own, self.row_codes[piece]], axis=-1)
        return codes

    @property
    def row_features(self) -> tuple[CodedFeature, ...]:
        """The last context features, such as ``row:tab``: there are none unless the preparation was asked for them."""
        return tuple(feature for feature in self.context_features if feature.name.startswith(ROW))

    @cached_property
    def row_codes(self) -> NDArray[np.int16]:
        """Codes of every row's own features, shape ``[n_rows, n_row_features]``; 0 is *unknown*."""
        codes = np.empty((self.n_rows, len(self.row_features)), dtype=np.int16)
        for place, feature in enumerate(self.row_features):
            codes[:, place] = self._column("interactions.parquet", feature.name).to_numpy()
        return codes

    def row_codes_now(self, user: int) -> NDArray[np.int16]:
        """Those of the latest row of a user, shape ``[n_row_features]``; all 0 for a user without rows.

        Randomly exposed and unused rows do not count.
        """
        begin, end = self.user_starts[user : user + 2]
        shown = np.flatnonzero(self.part[begin:end] < Part.UNBIASED)
        if not len(shown):
            return np.zeros(len(self.row_features), dtype=np.int16)
        latest: NDArray[np.int16] = self.row_codes[begin + shown[-1]]
        return latest

    def encode_user(
        self,
        user_views: NDArray[Any],
        user_clicks: NDArray[Any],
        open_views: NDArray[Any] | int,
        open_clicks: NDArray[Any] | int,
    ) -> NDArray[np.int32]:
        """User-side context codes of given counts, such as those of a new user's first rows.

        Parameters
        ----------
        user_views, user_clicks : ndarray
            Own rows and clicks, any shape ``[...]``.
        open_views, open_clicks : ndarray or int
            Rows and clicks of all open users by then; the rows' own where a row is scored.

        Returns
        -------
        ndarray of int32, shape ``[..., n_user_context]``
        """
        rate = smoothed_rate(user_clicks, user_views, open_clicks, open_views, USER_STRENGTH)
        return _stack(self._user_context, {"user_rate": rate, "user_views": user_views}, rate.shape)

    def encode_item(
        self,
        views: NDArray[Any],
        clicks: NDArray[Any],
        open_views: NDArray[Any] | int,
        open_clicks: NDArray[Any] | int,
    ) -> NDArray[np.int32]:
        """Item-side context codes of given counts, any shape ``[...]``, shape ``[..., n_item_context]``."""
        rate = smoothed_rate(clicks, views, open_clicks, open_views, ITEM_STRENGTH)
        return _stack(self._item_context, {"item_rate": rate, "item_views": views}, rate.shape)

    def item_context(self, times: NDArray[np.int64]) -> NDArray[np.int32]:
        """Item-side context codes of the whole catalogue at given instants.

        Parameters
        ----------
        times : ndarray of int64, shape ``[n]``
            Only open users' rows strictly before an instant are counted for it.

        Returns
        -------
        ndarray of int32, shape ``[n, n_items, n_item_context]``
        """
        return self.encode_catalogue(self.item_counts(times))

    def encode_catalogue(self, counts: ItemCounts) -> NDArray[np.int32]:
        """Item-side context codes of the whole catalogue, shape ``[instants, n_items, n_item_context]``."""
        codes = np.empty((*counts.views.shape, self.n_item_context), dtype=np.int32)
        for place in range(len(codes)):
            opened = int(counts.open_views[place]), int(counts.open_clicks[place])
            codes[place] = self.encode_item(counts.views[place], counts.clicks[place], *opened)
        return codes

    def item_counts(self, times: NDArray[np.int64]) -> ItemCounts:
        """Open users' rows and clicks of the whole catalogue strictly before given instants.

        Parameters
        ----------
        times : ndarray of int64, shape ``[n]``

        Raises
        ------
        DataError
            If this is a node's part of a data set, which lacks open users' rows (`fedpa.data.shard`).
        """
        part = self.manifest["settings"].get("shard")
        if part is not None and part["node"] is not None:
            raise DataError(
                f"{self.path}: is node {part['node']}'s part of a data set, whose catalogue cannot be counted here",
                "devices have the counts that `fedpa export` writes from the whole data set",
            )
        times = np.asarray(times, dtype=np.int64)
        shape = len(times), self.n_items
        found = ItemCounts(*(np.zeros(size, dtype=np.int64) for size in (shape, shape, shape[:1], shape[:1])))
        when, item, clicked = self._open_by_time
        views, clicks = (np.zeros(self.n_items, dtype=np.int64) for _ in range(2))
        done = 0
        for place in np.argsort(times, kind="stable"):
            end = int(np.searchsorted(when, times[place], side="left"))
            views += np.bincount(item[done:end], minlength=self.n_items)
            clicks += np.bincount(item[done:end][clicked[done:end]], minlength=self.n_items)
            done = end
            found.views[place], found.clicks[place] = views, clicks
            found.open_views[place], found.open_clicks[place] = end, clicks.sum()
        return found

    def user_context_now(self) -> NDArray[np.int32]:
        """User-side context codes after the last row, shape ``[n_users, n_user_context]``.

        They count all of a user's own rows except the randomly exposed ones: what a device knows today.
        """
        counted = self.counted
        views = np.bincount(counted.user, minlength=self.n_users)
        clicks = np.bincount(counted.user[counted.click], minlength=self.n_users)
        _, _, clicked = self._open_by_time
        return self.encode_user(views, clicks, len(clicked), int(clicked.sum()))

    # Inside

    @cached_property
    def _open_by_time(self) -> tuple[NDArray[np.int64], NDArray[np.uint32], NDArray[np.bool_]]:
        if self.manifest["settings"].get("shard", {"node": None})["node"] is not None:
            raise DataError(
                f"{self.path}: is a node's shard, which has no rows of open users to count",
                "use the whole data set, or the counts that `fedpa export` writes for devices",
            )
        opened = self.counted.keep(self.counted.opened)
        order = np.argsort(opened.time, kind="stable")
        return opened.time[order], opened.item[order], opened.click[order]

    @cached_property
    def _context(self) -> tuple[Numeric, ...]:
        encoders = [from_json(content) for content in self.manifest["features"]["context"]]
        return tuple(encoder for encoder in encoders if isinstance(encoder, Numeric))

    @property
    def _item_context(self) -> tuple[Numeric, ...]:
        return tuple(encoder for encoder in self._context if encoder.name.startswith("item_"))

    @property
    def _user_context(self) -> tuple[Numeric, ...]:
        return tuple(encoder for encoder in self._context if encoder.name.startswith("user_"))

    def _features(self, table: str) -> tuple[CodedFeature, ...]:
        return tuple(CodedFeature(each["name"], each["size"]) for each in self.manifest["features"][table])

    def _codes(self, file: str, features: tuple[CodedFeature, ...], rows: int) -> NDArray[np.int32]:
        codes = np.empty((rows, len(features)), dtype=np.int32)
        for place, feature in enumerate(features):
            codes[:, place] = self._column(file, f"feature:{feature.name}").to_numpy()
        return codes

    def _check(self, name: str, size: int) -> None:
        file = self.path / name
        if not file.is_file():
            raise ArtifactError(f"{file}: missing from the data set", _AGAIN)
        if file.stat().st_size != size:
            raise ArtifactError(f"{file}: has {file.stat().st_size} bytes, the manifest says {size}", _AGAIN)
        try:
            pl.read_parquet_schema(file)
        except (pl.exceptions.PolarsError, OSError) as error:
            raise ArtifactError(f"{file}: not readable as parquet ({error})", _AGAIN) from error

    def _column(self, file: str, name: str) -> pl.Series:
        if (file, name) not in self._frames:
            try:
                frame = pl.read_parquet(self.path / file, columns=[name], memory_map=True)
            except (pl.exceptions.PolarsError, OSError) as error:
                raise ArtifactError(f"{self.path / file}: cannot read column {name!r} ({error})", _AGAIN) from error
            self._frames[file, name] = frame.get_column(name).rechunk()
        return self._frames[file, name]


def load_dataset(path: Path | str) -> Dataset:
    """Open a data set folder; see `Dataset`."""
    return Dataset(path)


def describe(dataset: Dataset) -> dict[str, Any]:
    """What a data set holds: counts, parts, click rates, features, groups and what a person should know."""
    manifest = dataset.manifest
    features = {table: dict(dataset._features(table)) for table in ("user", "item", "context")}
    return {
        "source": manifest["source"],
        "hash": dataset.hash,
        "label": dataset.label_name,
        "settings": manifest["settings"],
        "counts": manifest["counts"],
        "features": features,
        "groups": dataset.group_sizes,
        "undated": manifest["undated"],
        "notes": manifest["notes"],
        "warnings": manifest["warnings"],
    }


def _part(part: str | Part) -> int:
    if isinstance(part, Part):
        return int(part)
    if part not in PARTS:
        raise DataError(f"no part {part!r}, expected one of {', '.join(PARTS)}")
    return PARTS.index(part)


def _find(ids: pl.Series, wanted: int | str, noun: str, path: Path) -> int:
    try:
        key: int | str = str(wanted) if ids.dtype == pl.String else int(wanted)
        place = bisect.bisect_left(ids, key)
        if place < len(ids) and ids[place] == key:
            return place
    except (ValueError, OverflowError):
        pass
    kind = "text" if ids.dtype == pl.String else "whole numbers"
    raise DataError(f"{path}: no {noun} {wanted!r} among its {len(ids):,} {noun}s (their ids are {kind})")


def _stack(encoders: tuple[Numeric, ...], values: dict[str, NDArray[Any]], shape: tuple[int, ...]) -> NDArray[np.int32]:
    codes = np.empty((*shape, len(encoders)), dtype=np.int32)
    for place, encoder in enumerate(encoders):
        flat = np.broadcast_to(values[encoder.name], shape).reshape(-1)
        codes[..., place] = encoder.encode(flat).reshape(shape)
    return codes
