"""A node: scores and trains from the generation it is told, repeats to the byte, and keeps what it is told."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from torch import Tensor

from arrays import CPU, Array, ArrayDataset, toy, toy_engine, toy_foundation
from fedpa.artifacts import sha256
from fedpa.errors import ArtifactError
from fedpa.federation.node import SPLITS, Node, divided, split_sums
from fedpa.federation.order import Base, Order
from fedpa.federation.server import Server, TableRows, Upload
from fedpa.federation.tally import Tally
from fedpa.methods import FederatedMethod, find_method

USERS = 17
SPECS = {
    "fedpa": {"rank": 2, "gate_hidden": (3, 2), "item_counts": 5},
    "gpfedrec": {"width": 4, "hidden": (6, 4), "neighbours": 3, "optimizer": "adam", "lr": 0.01, "item_rate": 1.0},
}
every = pytest.mark.parametrize("name", SPECS)


@cache
def data() -> ArrayDataset:
    return toy(USERS, np.random.default_rng(0).integers(3, 20, USERS))


def method(name: str, **values: Any) -> FederatedMethod:
    common: dict[str, Any] = {"participation": 0.5, "keep_optimizer": True, "batch_size": 8, "epochs": 2}
    return cast(FederatedMethod, find_method(name).configured("default", {**SPECS[name], **common, **values}))


def new(folder: Path, name: str = "fedpa", users: Array | None = None, **named: Any) -> Node:
    """A node as another process would make it: with a method and a model of its own."""
    found = toy_foundation(data())
    return Node(method(name), found, data(), seed=3, folder=folder, users=users, sync=False, **named)


def tally(name: str = "fedpa") -> Tally | None:
    """Everybody's item counts."""
    return new(Path(), name).tally()


def started(folder: Path, name: str = "fedpa", users: Array | None = None, **named: Any) -> Node:
    node = new(folder, name, users, **named)
    node.start(tally(name))
    return node


class Rounds:
    """A server that gives the orders of a run and remembers them."""

    def __init__(self, name: str) -> None:
        chosen = method(name)
        self.server: Server = chosen.server(chosen.model(toy_foundation(data()), data(), 3, CPU).layout)
        self.orders: list[Order] = []

    def order(self, number: int) -> Order:
        """Train round `number` from the state that the server has now."""
        found = Order("run", number, tuple(self.server.state), self.server.downlink)
        self.orders.append(found)
        return found

    def go(self, node: Node, rounds: int, keep: tuple[int, ...] = ()) -> list[Upload]:
        """Train some rounds on one node."""
        uploads = []
        for number in range(1, rounds + 1):
            report = node.train(self.order(number), Base(number - 1, keep or tuple(range(number))))
            assert (report.run, report.number, report.node) == ("run", number, node.index)
            self.server.step(report.upload)
            uploads.append(report.upload)
        return uploads


def content(upload: Upload) -> list[Any]:
    """All that an upload holds, to compare to the bit."""
    seen = [(one.table, one.users.tobytes(), one.ids.tobytes(), one.values.numpy().tobytes()) for one in upload.seen]
    arrays = [value.numpy().tobytes() for value in (*upload.sums, *upload.weights)]
    return [arrays, seen, upload.participants, upload.rows, upload.loss, upload.weights_up, upload.weights_down]


def files(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): sha256(path) for path in folder.rglob("*") if path.is_file()}


def numbers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@every
def test_it_is_the_engine_of_the_tests(tmp_path: Path, name: str) -> None:
    """Uploads and scores are those of a shard with a server beside it."""
    engine = toy_engine(tmp_path / "engine", data(), method(name), seed=3)
    node, rounds = started(tmp_path / "node", name), Rounds(name)
    expected = [engine.round(number) for number in (1, 2)]
    assert [*map(content, rounds.go(node, 2))] == [*map(content, expected)]
    rows = engine.shards[0].rows
    found = node.evaluate(rounds.order(3), Base(2, (1, 2)))
    assert found == split_sums(rows, engine.shards[0].scores(engine.server.state))
    assert [*found] == [*SPLITS]
    assert sum(sums.rows for sums in found.values()) == data().n_rows
    assert all(sums.users > 0 for sums in found.values())


@every
def test_a_fresh_node_starts_at_zeros(tmp_path: Path, name: str) -> None:
    node = new(tmp_path, name)
    assert node.start(tally(name)) == [0]
    before = files(tmp_path)
    again = new(tmp_path, name)
    assert again.start(tally(name)) == [0]
    assert files(tmp_path) == before
    order = Rounds(name).order(1)
    assert again.evaluate(order, Base()) == node.evaluate(order, Base())


@every
def test_it_scores_from_the_base(tmp_path: Path, name: str) -> None:
    """With one state, what devices kept by then makes the difference; neither order of asking does."""
    node, rounds = started(tmp_path, name), Rounds(name)
    rounds.go(node, 3)
    keep, order = (0, 1, 2, 3), rounds.order(4)
    found = {number: node.evaluate(order, Base(number, keep)) for number in (3, 0, 2, 1)}
    assert len({sums["val"] for sums in found.values()}) == 4
    assert found == {number: node.evaluate(order, Base(number, keep)) for number in found}
    fresh = started(tmp_path, name)
    assert found == {number: fresh.evaluate(order, Base(number, keep)) for number in found}


@every
@pytest.mark.parametrize("restarted", [False, True])
def test_a_repeated_order_gives_the_same_bytes(tmp_path: Path, name: str, restarted: bool) -> None:
    """Rounds 2 and 3 once more, from generation 1, also after the last of them and in a process of its own."""
    node, rounds = started(tmp_path, name), Rounds(name)
    uploads = rounds.go(node, 3)
    before = files(tmp_path)
    for again in (3, 3, 2, 3):
        if restarted:
            node = started(tmp_path, name)
        report = node.train(rounds.orders[again - 1], Base(again - 1, (0, 1, 2, 3)))
        assert content(report.upload) == content(uploads[again - 1])
        assert files(tmp_path) == before


def test_a_round_trained_from_another_base_is_another_one(tmp_path: Path) -> None:
    node, rounds = started(tmp_path), Rounds("fedpa")
    uploads = rounds.go(node, 3)
    before = files(tmp_path)
    report = node.train(rounds.orders[2], Base(1, (0, 1, 2)))  # as if round 2 of this node had not been counted
    assert content(report.upload) != content(uploads[2])
    changed = {name for name, value in files(tmp_path).items() if before[name] != value}
    assert changed == {"000003/personal.safetensors", "000003/generation.json"}


def test_evaluating_writes_nothing(tmp_path: Path) -> None:
    node, rounds = started(tmp_path), Rounds("fedpa")
    rounds.go(node, 2)
    before = files(tmp_path)
    node.evaluate(rounds.order(3), Base(1, ()))
    assert files(tmp_path) == before


def test_it_keeps_what_it_is_told_and_what_it_started_from(tmp_path: Path) -> None:
    node, rounds = started(tmp_path), Rounds("fedpa")
    rounds.go(node, 4)
    assert numbers(tmp_path) == ["000000", "000001", "000002", "000003", "000004"]
    node.train(rounds.order(5), Base(4, (1, 3)))
    assert numbers(tmp_path) == ["000001", "000003", "000004", "000005"]
    node.train(rounds.order(6), Base(5, ()))
    assert numbers(tmp_path) == ["000005", "000006"]
    assert started(tmp_path).start(tally()) == [5, 6]


@every
def test_a_round_that_was_cut_off_is_trained_again(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    node, rounds, place = started(tmp_path / "node", name), Rounds(name), tmp_path / "node"
    uploads = Rounds(name).go(started(tmp_path / "whole", name), 2)
    rounds.go(node, 1)

    def fails(*_: Any) -> None:
        raise RuntimeError("cut off")

    with monkeypatch.context() as patch:
        patch.setattr(type(node.shard), "_sums", fails)
        with pytest.raises(RuntimeError, match="cut off"):
            node.train(rounds.order(2), Base(1, (0, 1)))
    assert node.shard.store.held().keys() == {0, 1}
    assert new(place, name).start(tally(name)) == [0, 1]
    report = node.train(rounds.orders[1], Base(1, (0, 1)))
    assert content(report.upload) == content(uploads[1])
    assert files(place) == files(tmp_path / "whole")


def test_generations_of_other_users_are_refused(tmp_path: Path) -> None:
    users = divided(data(), 2)
    node = started(tmp_path, users=users[0])
    Rounds("fedpa").go(node, 1)
    for others in (users[1], users[0][1:], None):
        with pytest.raises(ArtifactError, match="generation 0 is of other users") as caught:
            new(tmp_path, users=others).start(tally())
        assert "folder" in (caught.value.fix or "")
    assert new(tmp_path, users=users[0]).start(tally()) == [0, 1]


def test_they_are_refused_too_where_only_one_is_opened(tmp_path: Path) -> None:
    everybody, rounds = divided(data(), 1)[0], Rounds("fedpa")
    rounds.go(started(tmp_path, users=everybody[:-1]), 1)
    same, other = new(tmp_path, users=everybody[:-1]), new(tmp_path, users=everybody[1:])
    for node in (same, other):
        node.open(tally())
    assert same.evaluate(rounds.order(2), Base(1, (1,)))["test"].rows
    with pytest.raises(ArtifactError, match="generation 1 is of other users"):
        other.evaluate(rounds.orders[1], Base(1, (1,)))


def test_damaged_generations_are_left_out_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    node, rounds = started(tmp_path), Rounds("fedpa")
    uploads = rounds.go(node, 2)
    file = tmp_path / "000002" / "personal.safetensors"
    damaged = bytearray(file.read_bytes())
    damaged[len(damaged) // 2] ^= 4
    file.write_bytes(damaged)
    again = new(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert again.start(tally()) == [0, 1]
    assert [f"{file}: damaged" in record.getMessage() for record in caplog.records] == [True]
    with pytest.raises(ArtifactError, match=r"000002/personal\.safetensors: damaged"):
        again.evaluate(rounds.order(3), Base(2, (0, 1, 2)))
    report = again.train(rounds.orders[1], Base(1, (0, 1)))
    assert content(report.upload) == content(uploads[1])
    assert again.start(tally()) == [0, 1, 2]


def test_it_must_be_started(tmp_path: Path) -> None:
    node = new(tmp_path, index=4)
    with pytest.raises(ArtifactError, match="node 4: was not started"):
        node.evaluate(Rounds("fedpa").order(1), Base())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shards", [1, 2, 7, USERS])
@every
def test_nodes_add_up_to_one(tmp_path: Path, name: str, shards: int) -> None:
    """Counts before the first round, scores, and three rounds with what the server sends to single users."""
    parts = divided(data(), shards)
    assert np.concatenate(parts).tolist() == list(range(USERS))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    nodes = [new(tmp_path / str(i), name, users, index=i) for i, users in enumerate(parts)]
    counts = [found for node in nodes if (found := node.tally()) is not None]
    assert len(counts) == (shards if name == "fedpa" else 0)
    total = None
    for each in counts:
        total = each if total is None else total + each
    for node in nodes:
        node.start(total)
    alone, rounds, expected = started(tmp_path / "alone", name), Rounds(name), Rounds(name)
    for number in (1, 2, 3):
        base = Base(number - 1, ())
        order = rounds.order(number)
        assert bytes_of(order.state) == bytes_of(expected.order(number).state)
        assert [*map(table_bytes, order.downlink)] == [*map(table_bytes, expected.orders[-1].downlink)]
        assert bool(order.downlink) == (name == "gpfedrec" and number > 1)
        one, several = alone.evaluate(order, base), [node.evaluate(order, base) for node in nodes]
        for split, sums in one.items():
            first, *rest = (found[split] for found in several)
            for other in rest:
                first = first + other
            assert first == sums
        upload = Upload.empty(rounds.server.layout, method(name).settings)
        for node in nodes:
            upload += node.train(order, base).upload
        rounds.server.step(upload)
        expected.server.step(alone.train(order, base).upload)
    assert bytes_of(rounds.server.state) == bytes_of(expected.server.state)


def bytes_of(state: list[Tensor] | tuple[Tensor, ...]) -> list[bytes]:
    return [value.numpy().tobytes() for value in state]


def table_bytes(table: TableRows) -> list[bytes]:
    return [table.users.tobytes(), table.ids.tobytes(), table.values.numpy().tobytes()]


def test_a_report_says_what_it_answers(tmp_path: Path) -> None:
    node, rounds = started(tmp_path, index=6), Rounds("fedpa")
    report = node.train(replace(rounds.order(1), run="another"), Base(0, (0,)))
    assert (report.run, report.node, report.number) == ("another", 6, 1)
    assert numbers(tmp_path) == ["000000", "000001"]
