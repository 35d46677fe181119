"""A data set cut into one folder for the server and one for each node, which hold what each of them may know."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from fedpa.artifacts import publish
from fedpa.data.dataset import OPEN, PRIVATE, Dataset, Part, load_dataset
from fedpa.data.derive import row_facts, write_derived_manifest, write_rows
from fedpa.data.encode import Numeric, from_json
from fedpa.errors import ArtifactError, ConfigError, DataError

__all__ = [
    "SERVER",
    "ShardFacts",
    "node_folder",
    "private_users",
    "shard",
    "shard_facts",
    "user_numbers",
]

SERVER = "server"
"""Name of the server's folder."""

_NUMBER = "number"
_WHOLE = "name a folder as `fedpa data shard` wrote it, with all its parts"
Ints = NDArray[np.int64]


class ShardFacts(NamedTuple):
    """What a folder of a divided data set says of the whole.

    Attributes
    ----------
    source : str
        Hash of the data set that was divided.
    shards : int
        How many nodes there are.
    node : int or None
        Number of the node, from 0; None for the server.
    private_users : int
        Private users of all nodes together.
    """

    source: str
    shards: int
    node: int | None
    private_users: int


class _Tables(NamedTuple):
    """The tables of the data set that is divided, with each user's side."""

    users: pl.DataFrame
    interactions: pl.DataFrame
    part: NDArray[np.uint8]
    user: NDArray[np.uint32]
    counted: pl.DataFrame | None
    oracle: NDArray[np.float64] | None


def node_folder(node: int) -> str:
    """Name of a node's folder."""
    return f"node-{node}"


def shard_facts(dataset: Dataset) -> ShardFacts | None:
    """What a folder that `shard` wrote says of the whole; None for any other data set."""
    found = dataset.manifest["settings"].get("shard")
    return None if found is None else ShardFacts(**found)


def private_users(dataset: Dataset) -> int:
    """Private users of all shards together, for rates that depend on how many there are."""
    facts = shard_facts(dataset)
    return int(np.count_nonzero(dataset.side == PRIVATE)) if facts is None else facts.private_users


def user_numbers(dataset: Dataset) -> Ints:
    """Number of every user in the data set that was divided [n_users]; their own numbers where none was."""
    if shard_facts(dataset) is None:
        return np.arange(dataset.n_users)
    return dataset._column("users.parquet", _NUMBER).to_numpy().astype(np.int64)


def shard(
    dataset: Dataset,
    out: Path | str,
    *,
    shards: int | None = None,
    like: Path | str | None = None,
    overwrite: bool = False,
) -> dict[str, Path]:
    """Write a folder for the server and one for each node; each is a data set folder of its own.

    A node has private users with all their rows: a contiguous range of all private users in the order of their ids, as
    even as can be. With `like`, users stay on the nodes that they were on, and each new one goes to the node that has
    the fewest. The counts that its rows hold were taken before, so that of open users it needs two rows alone: their
    first and last in time, which bound the periods of item counts (`fedpa.federation.tally.Tally`). A node trains
    and scores its users' rows with them to the bit as the whole data set does; it cannot count the catalogue anew, as
    `recommend` does: for that devices have the counts that `fedpa export` writes. The server's folder has the open
    users with their rows and not one private user. Items, codes, groups and encoders are in every folder. Cold users,
    who stand for people who have not come yet, are in none.

    Parameters
    ----------
    dataset : Dataset
    out : Path
        Folder to write: ``server``, ``node-0``, ``node-1`` and so on. It appears when it is complete.
    shards : int, optional
        Number of nodes, from 1 to the number of private users.
    like : path, optional
        What this function wrote of an earlier data set, instead of `shards`.
    overwrite : bool
        Replace `out` if it exists.

    Returns
    -------
    dict of str to Path
        The folders by name, the server's first.

    Raises
    ------
    ConfigError
        If `shards` is out of range, or the data set is a shard already, or not one of `shards` and `like` is given.
    ArtifactError
        If `out` exists or cannot be written, or `like` is not what it must be.
    DataError
        If ids of users are of another type than those in `like`.
    """
    if shard_facts(dataset) is not None:
        raise ConfigError(f"{dataset.path}: is a shard of a data set already", "divide the data set it was made from")
    private = np.flatnonzero(dataset.side == PRIVATE)
    if (shards is None) == (like is None):
        raise ConfigError(
            "expected either a number of shards or the shards of an earlier data set",
            "give --shards N or --like SHARDS",
        )
    if like is not None:
        parts = _as_before(dataset, private, Path(like))
    elif shards is not None and 1 <= shards <= len(private):
        parts = np.array_split(private, shards)
    else:
        raise ConfigError(f"shards: found {shards}, expected 1 to {len(private):,}, the number of private users")
    out = Path(out)
    facts = {"source": dataset.hash, "shards": len(parts), "private_users": len(private)}
    tables = _read(dataset)
    opened = dataset.rows(Part.FOUNDATION, Part.FOUNDATION_VAL)
    time = dataset.time[opened]
    ends = np.unique(opened[[time.argmin(), time.argmax()]]) if len(opened) else opened
    with publish(out, overwrite=overwrite) as room:
        users = np.flatnonzero(dataset.side == OPEN)
        rows = np.flatnonzero(dataset.side[dataset.user] == OPEN)
        _write(dataset, tables, room / SERVER, users, rows, facts | {"node": None}, "open users alone: for a server")
        for node, own in enumerate(parts):
            rows = _rows_of(dataset, own)
            users = np.union1d(own, dataset.user[ends])
            note = "some private users, and two rows of open ones: for a node"
            here = facts | {"node": node}
            _write(dataset, tables, room / node_folder(node), users, np.union1d(rows, ends), here, note)
    return {name: out / name for name in (SERVER, *map(node_folder, range(len(parts))))}


def _as_before(dataset: Dataset, private: Ints, like: Path) -> list[Ints]:
    """Users of each node, ascending: those whom it had in `like` and are still private, and some of the new ones."""
    facts = shard_facts(load_dataset(like / SERVER))
    if facts is None:
        raise ArtifactError(f"{like / SERVER}: is no part of a data set", _WHOLE)
    ids, home = dataset.user_ids.gather(private), np.full(len(private), -1)
    for node in range(facts.shards):
        earlier = load_dataset(like / node_folder(node))
        if shard_facts(earlier) != facts._replace(node=node):
            raise ArtifactError(f"{earlier.path}: is not node {node} of {like / SERVER}", _WHOLE)
        known = earlier.user_ids.filter(pl.Series(earlier.side == PRIVATE))
        if known.dtype != ids.dtype:
            raise DataError(f"{dataset.path}: its user ids are {ids.dtype}, those of {earlier.path} are {known.dtype}")
        home[ids.is_in(known.implode()).to_numpy()] = node
    sizes = [(int(np.count_nonzero(home == node)), node) for node in range(facts.shards)]
    heapq.heapify(sizes)
    for place in np.flatnonzero(home < 0):
        users, node = sizes[0]
        home[place] = node
        heapq.heapreplace(sizes, (users + 1, node))
    return [private[home == node] for node in range(facts.shards)]


def _rows_of(dataset: Dataset, users: Ints) -> Ints:
    """Rows of some users [rows], ascending."""
    begin, end = dataset.user_starts[users], dataset.user_starts[users + 1]
    each = end - begin
    first = np.repeat(begin - (np.cumsum(each) - each), each)
    return first + np.arange(len(first))


def _read(dataset: Dataset) -> _Tables:
    drawn = "counted.parquet" in dataset.manifest["files"]
    return _Tables(
        pl.read_parquet(dataset.path / "users.parquet"),
        pl.read_parquet(dataset.path / "interactions.parquet"),
        dataset.part,
        dataset.user,
        pl.read_parquet(dataset.path / "counted.parquet") if drawn else None,
        dataset.oracle,
    )


def _write(
    dataset: Dataset, tables: _Tables, room: Path, users: Ints, rows: Ints, facts: Mapping[str, Any], note: str
) -> None:
    """Write the folder of some users, ascending, and some of their rows, ascending."""
    room.mkdir()
    local = np.zeros(dataset.n_users, dtype=np.uint32)
    local[users] = np.arange(len(users), dtype=np.uint32)
    user, part, side = local[tables.user[rows]], tables.part[rows], dataset.side[users]
    numbers = pl.Series(_NUMBER, users.astype(np.uint32))
    tables.users[users].with_columns(numbers).write_parquet(room / "users.parquet")
    (room / "items.parquet").write_bytes((dataset.path / "items.parquet").read_bytes())
    interactions = tables.interactions[rows].with_columns(pl.Series("user", user))
    write_rows(room, interactions, part)
    if tables.counted is not None:
        _counted(tables.counted, dataset, users, PRIVATE if facts["node"] is not None else OPEN, local).write_parquet(
            room / "counted.parquet"
        )
    if tables.oracle is not None:
        pl.DataFrame({"probability": tables.oracle[rows]}).write_parquet(room / "oracle.parquet")
    labels = {name: interactions.get_column(name).to_numpy() for name in dataset.label_names}
    encoders = (from_json(content) for content in dataset.manifest["features"]["context"])
    write_derived_manifest(
        room,
        dataset,
        raw=(),  # hashes of raw files hang on everybody's rows
        settings=dataset.manifest["settings"] | {"shard": dict(facts)},
        counts=row_facts(user, part, side, labels) | {"rows_read": len(rows), "dropped": {}, "items": dataset.n_items},
        context=[encoder for encoder in encoders if isinstance(encoder, Numeric)],
        notes=[note],
    )


def _counted(
    counted: pl.DataFrame, dataset: Dataset, users: Ints, side: int, local: NDArray[np.uint32]
) -> pl.DataFrame:
    """Rows that were really shown to those of some users who are of a side."""
    chosen = np.zeros(dataset.n_users, np.bool_)
    chosen[users[dataset.side[users] == side]] = True
    user = counted.get_column("user").to_numpy()
    return counted.filter(pl.Series(chosen[user])).with_columns(pl.Series("user", local[user[chosen[user]]]))
