"""Later data of the same kind: encoders, sides and groups are those of a data set that was prepared before.

A foundation fits a data set whose codes mean what they meant when it was trained (`Foundation.check`), and a run is
continued with users and items by their ids. So nothing is fitted and no known user is divided anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from fedpa.data.dataset import Dataset
from fedpa.data.derive import refuse_drawn
from fedpa.data.divide import PRIVATE, by_file
from fedpa.data.encode import ROW, Categorical, Encoder, Numeric, from_json
from fedpa.data.source import Source
from fedpa.errors import ConfigError, DataError

__all__ = ["Like"]

Table = Literal["user", "item"]
_LEFT_OUT = {"features": "causal", "cold_users": False, "groups": None, "label": None, "row_features": (), "seed": 0}


class Like:
    """What an earlier data set lends to a later one.

    Parameters
    ----------
    dataset : Dataset
        Prepared with causal features from the same source.

    Attributes
    ----------
    settings : dict
        Those of `dataset` that a later one shares: ``features``, ``cold_users``, ``groups``, ``label``,
        ``row_features`` and ``seed``.

    Raises
    ------
    ConfigError
        If its features are the published ones, which are fitted over whole tables and know no unknown value, or its
        negatives were drawn.
    """

    def __init__(self, dataset: Dataset) -> None:
        refuse_drawn(dataset, "what later data are prepared like")
        manifest = dataset.manifest
        if manifest["settings"]["features"] != "causal":
            raise ConfigError(
                f"{dataset.path}: the published encoding has no code for a value that is new",
                "prepare the first data set with causal features",
            )
        self.dataset = dataset
        features = manifest["features"]
        self._encoders = {
            table: {each["name"]: from_json(each) for each in features[table]} for table in ("user", "item")
        }
        self._groups = {name: from_json(content) for name, content in manifest["groups"].items()}
        context = [from_json(content) for content in features["context"]]
        self.context = tuple(each for each in context if isinstance(each, Numeric))
        self.rows = tuple(each for each in context if isinstance(each, Categorical))
        self.settings: dict[str, Any] = {
            "features": "causal",
            "cold_users": manifest["settings"]["cold_users"],
            "groups": tuple(manifest["settings"]["groups"]),
            "label": manifest["label"],
            "row_features": tuple(each.name.removeprefix(ROW) for each in self.rows),
            "seed": manifest["settings"]["seed"],
        }

    def check(self, source: Source, division: object, wanted: Mapping[str, Any]) -> None:
        """Refuse a source of another kind, and settings that are not this data set's.

        Raises
        ------
        ConfigError
            If the source's name, labels or features are not those that the data set was made from, it lacks a row
            feature, or one of the settings is neither left out nor what it was.
        """
        if division == "random":
            raise ConfigError(
                "division: known users keep their sides, and new ones are private", "leave it out, or give a file"
            )
        for name, value in wanted.items():
            held = self.settings[name]
            given = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
            if given != _LEFT_OUT[name] and given != held:
                raise ConfigError(f"{name}: found {value!r}, but {self.dataset.path} has {held!r}", "leave it out")
        ours: tuple[tuple[str, Any, Any], ...] = (
            ("name", self.dataset.manifest["source"], source.name),
            ("user features", [*self._encoders["user"]], [each.name for each in source.user_features]),
            ("item features", [*self._encoders["item"]], [each.name for each in source.item_features]),
            ("labels", sorted(self.dataset.label_names), sorted(source.labels)),
        )
        for what, expected, found in ours:
            if expected != found:
                raise ConfigError(
                    f"{source.name}: its {what}: found {found}, but {self.dataset.path} was made of {expected}",
                    "give the same source with today's rows, or prepare without --like and pretrain anew",
                )
        if absent := [name for name in self.settings["row_features"] if name not in source.row_features]:
            raise ConfigError(
                f"{source.name}: offers no row feature {absent[0]!r}, which {self.dataset.path} has",
                "give the same source with today's rows",
            )

    def encoder(self, table: Table, name: str) -> Encoder:
        """The encoder of a user or item feature."""
        return self._encoders[table][name]

    def group(self, name: str) -> Encoder:
        """The encoder of a group."""
        return self._groups[name]

    def sides(self, ids: pl.Series, rows: NDArray[np.int64], least: int, file: Path | None) -> NDArray[np.int8]:
        """Side of every user, -1 for those who are left out.

        A known user keeps the side that it had. A new user is private, if no file says otherwise.

        Parameters
        ----------
        ids : polars.Series
            Shape ``[n]``.
        rows : ndarray of int64, shape ``[n]``
            How many rows each has today: without any a user has left.
        least : int
            New users with fewer rows are left out.
        file : Path or None
            Division of new users; whom it does not name is left out.

        Raises
        ------
        DataError
            If the ids are of another type than before, or the file is not what `by_file` expects.
        """
        known = self.dataset.user_ids
        if ids.dtype != known.dtype:
            raise DataError(
                f"{self.dataset.path}: its user ids are {known.dtype}, today's are {ids.dtype}",
                "read the ids as the same type",
            )
        before = pl.DataFrame({"key": known, "code": self.dataset.side.astype(np.int8)})
        joined = ids.rename("key").to_frame().join(before, on="key", how="left", maintain_order="left")
        code = joined.get_column("code")
        side = code.fill_null(-1).to_numpy().copy()
        side[rows == 0] = -1
        new = code.is_null().to_numpy() & (rows >= least)
        side[new] = PRIVATE if file is None else by_file(ids.filter(pl.Series(new)), file)
        return side

    def facts(self, users: pl.DataFrame, items: pl.DataFrame) -> dict[str, Any]:
        """How today's users and items differ from those of before, for the manifest.

        Parameters
        ----------
        users, items : polars.DataFrame
            As they are written: ids, sides and codes.

        Returns
        -------
        dict
            For ``users`` and ``items`` how many are ``known``, ``new`` and ``left``; by group how many known users have
            another value than before (``changed``).
        """
        found: dict[str, Any] = {}
        for noun, table, before in (("users", users, self.dataset.user_ids), ("items", items, self.dataset.item_ids)):
            ids = table[f"{noun[:-1]}_id"]
            known = ids.is_in(before.implode()).sum() if ids.dtype == before.dtype else 0
            found[noun] = {"known": known, "new": len(ids) - known, "left": len(before) - known}
        old = pl.DataFrame({"user_id": self.dataset.user_ids, **self.dataset.groups})
        both = old.join(users, on="user_id")
        found["changed"] = {
            name: int((both[name] != both[f"group:{name}"].cast(both[name].dtype)).sum()) for name in self._groups
        }
        return found
