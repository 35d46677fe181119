"""A divided data set gives the bytes of the whole one, and each of its folders holds only what it may know."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import polars as pl
import pytest
import torch

from command import answer, fedpa
from fedpa.data.dataset import COLD, OPEN, PRIVATE, Dataset
from fedpa.data.leave_one_out import leave_one_out
from fedpa.data.shard import SERVER, node_folder, private_users, shard, shard_facts, user_numbers
from fedpa.errors import ArtifactError, ConfigError, DataError
from fedpa.federation.rows import ShardRows
from fedpa.federation.shard import Shard
from fedpa.methods import FederatedMethod, find_method
from fedpa.models.foundation import Foundation
from fedpa.models.pretrain import pretrain
from later import later
from prepared import reading, small

CPU = torch.device("cpu")
NODES = 3
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "fedpa": ("fedpa", {"lr": 0.1, "participation": 0.6, "item_counts": 5}),
    "fedpa-online": ("fedpa", {"lr": 0.1, "history": "online", "weighting": "rows"}),
    "fedmf": ("fedmf", {"participation": 0.6, "table_mean": "touched"}),
    "fedmf-averaged": ("fedmf", {"participation": 0.6, "table_mean": "participants"}),  # its rate is per private user
}


class Divided(NamedTuple):
    """A data set and its folders."""

    whole: Dataset
    server: Dataset
    nodes: list[Dataset]


def divided(whole: Dataset, folder: Path, nodes: int = NODES) -> Divided:
    found = shard(whole, folder / "shards", shards=nodes)
    assert list(found) == [SERVER, *map(node_folder, range(nodes))]
    server, *rest = (Dataset(path) for path in found.values())
    return Divided(whole, server, rest)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Divided:
    return divided(small(tmp_path_factory).dataset, tmp_path_factory.mktemp("shard"))


def result(
    method: FederatedMethod, foundation: Foundation | None, layout: Dataset, nodes: Sequence[Dataset], folder: Path
) -> dict[str, bytes]:
    """Two rounds: everything that a division could change, as bytes."""
    dtype = method.settings.torch_dtype
    rows = [ShardRows.of(data, dtype=dtype, device=CPU) for data in nodes]
    tallies = [method.tally(data, own) for data, own in zip(nodes, rows, strict=True)]
    tally = None
    for each in tallies:
        tally = each if tally is None or each is None else tally + each
    shards = []
    for place, (data, own) in enumerate(zip(nodes, rows, strict=True)):
        known = method.rows(foundation, data, own, tally)
        model = method.model(foundation, data, 0, CPU)
        store = Shard.new_store(model, known, method.settings, folder / str(place))
        shards.append(Shard(model, known, method.settings, store, seed=0, rule=method))
    server = method.server(method.model(foundation, layout, 0, CPU).layout)
    found: dict[str, bytes] = {}
    if tally is not None:
        found["tally"] = b"".join(array.tobytes() for array in (tally.ends, tally.views, tally.clicks))
    for number in (1, 2):
        first, *others = (each.round(server.state, number, server.downlink) for each in shards)
        upload = first
        for other in others:
            upload += other
        found[f"upload {number}"] = b"".join(t.numpy().tobytes() for t in (*upload.sums, *upload.weights))
        found[f"facts {number}"] = repr((upload.participants, upload.rows, upload.loss, upload.weights_up)).encode()
        server.step(upload)
        found[f"server {number}"] = b"".join(t.numpy().tobytes() for t in server.state)
        found[f"scores {number}"] = b"".join(each.scores(server.state).tobytes() for each in shards)
    return found


def same_results(parts: Divided, foundation: Foundation | None, name: str, folder: Path) -> None:
    for data in (parts.server, *parts.nodes):
        if foundation is not None:
            foundation.check(data)
    spec, settings = METHODS[name]
    method = cast(FederatedMethod, find_method(spec).configured("default", settings))
    for place in ("whole", "parts"):
        (folder / place).mkdir()
    expected = result(method, foundation, parts.whole, [parts.whole], folder / "whole")
    found = result(method, foundation, parts.server, parts.nodes, folder / "parts")
    assert [key for key in expected if found[key] != expected[key]] == []
    assert expected["server 1"] != expected["server 2"]


@pytest.mark.parametrize("name", METHODS)
def test_rounds_on_shards_are_those_on_the_whole(
    parts: Divided, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, name: str
) -> None:
    foundation = small(tmp_path_factory).foundation if name.startswith("fedpa") else None
    same_results(parts, foundation, name, tmp_path)


def test_a_reader_of_the_past_sees_the_same(
    parts: Divided, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    same_results(parts, reading(tmp_path_factory), "fedpa", tmp_path)


def test_drawn_rows_know_what_was_really_shown(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    drawn = leave_one_out(small(tmp_path_factory).dataset, tmp_path / "drawn")
    parts = divided(drawn, tmp_path)
    foundation = pretrain(drawn, epochs=1, batch_size=256)
    assert foundation.inputs.history is not None
    same_results(parts, foundation, "fedpa-online", tmp_path)
    assert [len(data.counted.user) > 0 for data in (parts.server, *parts.nodes)] == [True] * 4


def test_every_private_user_is_on_one_node_with_all_its_rows(parts: Divided) -> None:
    whole = parts.whole
    found, rows = [], 0
    for data in parts.nodes:
        data.verify()
        numbers = user_numbers(data)
        assert data.user_ids.equals(whole.user_ids.gather(numbers))
        own = np.flatnonzero(data.side == PRIVATE)
        found.append(numbers[own])
        mine = np.isin(data.user, own)
        rows += int(mine.sum())
        theirs = np.flatnonzero(np.isin(whole.user, numbers[own]))
        for name in ("item", "time", "label", "part", "item_views", "open_clicks", "user_views"):
            assert (getattr(data, name)[mine] == getattr(whole, name)[theirs]).all(), name
    expected = np.array_split(np.flatnonzero(whole.side == PRIVATE), NODES)
    assert [each.tolist() for each in found] == [each.tolist() for each in expected]
    assert rows == np.isin(whole.user, np.concatenate(expected)).sum()


def test_of_open_users_a_node_has_the_first_and_the_last_row(parts: Divided) -> None:
    opened = parts.whole.rows("foundation", "foundation_val")
    ends = parts.whole.time[opened].min(), parts.whole.time[opened].max()
    for data in parts.nodes:
        own = data.rows("foundation", "foundation_val")
        assert sorted(data.time[own].tolist()) == list(ends)
        assert not (data.side == COLD).any()
        assert (data.side == OPEN).sum() <= 2


def test_the_server_has_nothing_of_private_and_cold_users(parts: Divided) -> None:
    assert (parts.whole.side == COLD).any()
    assert (parts.server.side == OPEN).all()
    assert parts.server.n_users == (parts.whole.side == OPEN).sum()
    assert parts.server.n_rows == np.isin(parts.whole.user, np.flatnonzero(parts.whole.side == OPEN)).sum()
    gone = parts.whole.user_ids.gather(np.flatnonzero(parts.whole.side != OPEN))
    assert not parts.server.user_ids.is_in(gone.implode()).any()
    times = np.array([0, parts.whole.time.max() + 1])
    for here, there in zip(parts.server.item_counts(times), parts.whole.item_counts(times), strict=True):
        assert (here == there).all()


def test_a_foundation_is_the_same_from_the_servers_folder(parts: Divided) -> None:
    made = [pretrain(data, epochs=1, batch_size=256).hash for data in (parts.whole, parts.server)]
    assert made[0] == made[1]


def test_each_folder_says_what_it_is_part_of(parts: Divided) -> None:
    private = int((parts.whole.side == PRIVATE).sum())
    facts = [shard_facts(data) for data in (parts.server, *parts.nodes)]
    assert facts == [(parts.whole.hash, NODES, node, private) for node in (None, *range(NODES))]
    assert {private_users(data) for data in (parts.whole, parts.server, *parts.nodes)} == {private}
    assert shard_facts(parts.whole) is None
    assert user_numbers(parts.whole).tolist() == list(range(parts.whole.n_users))
    assert all(data.manifest["raw"] == [] for data in (parts.server, *parts.nodes))


def test_equal_data_give_equal_bytes(parts: Divided, tmp_path: Path) -> None:
    again = divided(parts.whole, tmp_path)
    assert [data.hash for data in again.nodes] == [data.hash for data in parts.nodes]
    assert again.server.hash == parts.server.hash


def test_one_user_on_each_node(parts: Divided, tmp_path: Path) -> None:
    many = divided(parts.whole, tmp_path, private_users(parts.whole))
    assert {int((data.side == PRIVATE).sum()) for data in many.nodes} == {1}


@pytest.mark.parametrize("shards", [0, 10_000])
def test_a_number_of_shards_out_of_range_is_refused(parts: Divided, tmp_path: Path, shards: int) -> None:
    with pytest.raises(ConfigError, match=f"shards: found {shards}, expected 1 to"):
        shard(parts.whole, tmp_path / "out", shards=shards)
    assert list(tmp_path.iterdir()) == []


def test_users_stay_where_they_were_and_new_ones_go_where_there_are_fewest(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    world = later(tmp_path_factory)
    before = shard(world.first, tmp_path / "first", shards=NODES)
    today = shard(world.today, tmp_path / "today", like=tmp_path / "first")
    assert before.keys() == today.keys()
    nodes = list(before)[1:]
    homes = {user: name for name in nodes for user in ids(Dataset(before[name]), PRIVATE)}
    sizes = []
    for name in nodes:
        users = ids(Dataset(today[name]), PRIVATE)
        sizes.append(len(users))
        assert all(homes[user] == name for user in users if user in homes)
    assert {user for name in nodes for user in ids(Dataset(today[name]), PRIVATE)} == set(ids(world.today, PRIVATE))
    assert max(sizes) - min(sizes) <= 1
    with pytest.raises(ConfigError, match="either a number of shards or"):
        shard(world.today, tmp_path / "both", shards=2, like=tmp_path / "first")
    with pytest.raises(ArtifactError, match="expected a dataset folder"):
        shard(world.today, tmp_path / "none", like=tmp_path)
    other = shard(world.first, tmp_path / "other", shards=NODES - 1)
    (tmp_path / "first" / "node-1").rename(tmp_path / "moved")
    with pytest.raises(ArtifactError, match=r"first/node-1: expected a dataset folder"):
        shard(world.today, tmp_path / "incomplete", like=tmp_path / "first")
    other["node-1"].rename(tmp_path / "first" / "node-1")
    with pytest.raises(ArtifactError, match=r"first/node-1: is not node 1 of"):
        shard(world.today, tmp_path / "mixed", like=tmp_path / "first")
    assert not any((tmp_path / name).exists() for name in ("both", "none", "incomplete", "mixed"))


def ids(data: Dataset, side: int) -> list[int]:
    return data.user_ids.filter(pl.Series(data.side == side)).to_list()


def test_a_shard_is_not_divided_again(parts: Divided, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a shard of a data set already"):
        shard(parts.nodes[0], tmp_path / "out", shards=2)


def test_an_existing_folder_stays(parts: Divided, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="already exists"):
        shard(parts.whole, tmp_path, shards=2)


def test_the_command_line_divides_as_python_does(parts: Divided, tmp_path: Path) -> None:
    found = answer("data", "shard", parts.whole.path, "--shards", NODES, "--out", tmp_path / "out")
    assert {name: Dataset(tmp_path / "out" / name).hash for name in found["users"]} == {
        data.path.name: data.hash for data in (parts.server, *parts.nodes)
    }
    assert sum(users for name, users in found["users"].items() if name != SERVER) == private_users(parts.whole)
    assert found["rows"][SERVER] == parts.server.n_rows
    assert "expected 1 to" in fedpa("data", "shard", parts.whole.path, "--shards", 0, "--out", tmp_path, code=2).stderr


def test_a_node_does_not_count_the_catalogue(parts: Divided) -> None:
    now = np.array([int(parts.whole.time.max()) + 1])
    assert (parts.server.item_counts(now).views == parts.whole.item_counts(now).views).all()
    with pytest.raises(DataError, match="node 0's part of a data set, whose catalogue cannot be counted here"):
        parts.nodes[0].item_counts(now)


def test_codes_and_encoders_are_kept(parts: Divided) -> None:
    columns = set(pl.read_parquet_schema(parts.whole.path / "users.parquet"))
    for data in (parts.server, *parts.nodes):
        assert set(pl.read_parquet_schema(data.path / "users.parquet")) == columns | {"number"}
        assert (data.user_codes == parts.whole.user_codes[user_numbers(data)]).all()
        assert (data.item_codes == parts.whole.item_codes).all()
        assert data.manifest["features"] == parts.whole.manifest["features"]
        assert data.group_sizes == parts.whole.group_sizes
