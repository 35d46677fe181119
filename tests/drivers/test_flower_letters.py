"""What travels, who opens it, and what is written down of whom it came from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fedpa.drivers.flower.desk import FAILED, Desk, Unfit
from fedpa.drivers.flower.letter import Letter, of_record, packed, to_record, unpacked
from fedpa.drivers.flower.post import Seen
from fedpa.drivers.flower.roll import Roll
from fedpa.errors import ArtifactError, ConfigError
from fedpa.evaluation.sums import BINS
from fedpa.federation.form import Refused

RUN = "0123456789abcdef"


def letter(serial: int = 1, kind: str = "round", session: int = 7, **head: Any) -> Letter:
    own = {"run": RUN, "node": 3, "session": session, "serial": serial, **head}
    arrays: dict[str, Any] = {
        "state/a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "none": np.zeros((0, 4), np.int64),
    }
    return Letter(kind, own, (({"kind": "report", "x": 1 << 60}, arrays), ({"kind": "sums"}, sparse())))


def sparse() -> dict[str, Any]:
    histogram = np.zeros((2, BINS), np.int64)
    histogram[:, ::1000] = 5
    return {"histogram/train": histogram, "numbers/train": np.arange(16).reshape(8, 2)}


def test_a_letter_arrives_as_it_was_sent() -> None:
    sent = letter()
    found = of_record(to_record(sent))
    assert (found.kind, found.head) == (sent.kind, sent.head)
    for (header, arrays), (other, others) in zip(sent.parts, found.parts, strict=True):
        assert header == other and arrays.keys() == others.keys()
        for name, array in arrays.items():
            assert array.dtype == others[name].dtype and np.array_equal(array, others[name])


def test_the_length_of_an_upload_does_not_depend_on_what_is_in_it() -> None:
    zeros, noise = (
        Letter("round", {}, (({"kind": "report"}, {"sum/a": array}),))
        for array in (np.zeros(999, np.int64), np.random.default_rng(0).integers(0, 1 << 60, 999))
    )
    assert len(packed(zeros)[1]) == len(packed(noise)[1])
    assert len(packed(letter())[1]) < 16 * BINS, "sums of scores are squeezed"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        "[" * 2000,
        '{"protocol": 2, "kind": "a", "head": {}, "parts": []}',
        '{"protocol": 1, "kind": 1, "head": {}, "parts": []}',
        '{"protocol": 1, "kind": "a", "head": [], "parts": []}',
        '{"protocol": 1, "kind": "a", "head": {}, "parts": [1]}',
        '{"protocol": 1, "kind": "a", "head": {}}',
    ],
)
def test_odd_texts_are_refused(text: str) -> None:
    with pytest.raises(Refused):
        unpacked(text, packed(letter())[1])


@pytest.mark.parametrize("cut", [0, 4, 8, 40, -1])
def test_a_cut_block_is_refused(cut: int) -> None:
    text, block = packed(letter())
    with pytest.raises(Refused):
        unpacked(text, block[:cut])


def test_a_part_that_swells_is_refused() -> None:
    """A few kilobytes on the wire must not become gigabytes."""
    text, block = packed(Letter("round", {}, (({"kind": "sums"}, {"histogram": np.zeros(1 << 22, np.int64)}),)))
    assert len(block) < 100_000
    with pytest.raises(Refused, match="too large"):
        unpacked(text, block)


@pytest.mark.parametrize(
    "record",
    [
        RecordDict(),
        RecordDict({"fedpa": ConfigRecord({"letter": 1})}),
        RecordDict({"fedpa": ArrayRecord(), "fedpa.arrays": ArrayRecord()}),
        RecordDict({"fedpa": ConfigRecord({"letter": "{}"}), "fedpa.arrays": ConfigRecord({"block": "x"})}),
        RecordDict(
            {
                "fedpa": ConfigRecord({"letter": "{}"}),
                "fedpa.arrays": ArrayRecord({"block": Array("uint8", (1,), "safetensors", b"x")}),
            }
        ),
    ],
)
def test_odd_records_are_refused(record: RecordDict) -> None:
    with pytest.raises(Refused):
        of_record(record)


class Counting:
    """A handler that counts how often it was asked."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, desk: Desk, asked: Letter) -> Letter:
        self.count += 1
        desk.room(RUN).mkdir(exist_ok=True, parents=True)
        return Letter("round", {"count": self.count}, asked.parts)


def desk(folder: Path) -> Desk:
    return Desk.of({"dataset": "data", "store": str(folder / "store"), "foundation": "", "partition-id": 3})


def test_a_letter_that_comes_twice_is_answered_once_and_sent_twice(tmp_path: Path) -> None:
    handler = Counting()
    first = desk(tmp_path).answer(letter(), lambda: {"round": handler})
    again = desk(tmp_path).answer(letter(), lambda: {"round": handler})
    assert packed(first) == packed(again)
    assert first.head == {"run": RUN, "node": 3, "session": 7, "serial": 1, "count": 1}
    assert desk(tmp_path).answer(letter(2), lambda: {"round": handler}).head["count"] == 2


def test_an_older_letter_is_refused(tmp_path: Path) -> None:
    handler = Counting()
    desk(tmp_path).answer(letter(5), lambda: {"round": handler})
    for late in (letter(4), letter(9, session=6)):
        found = desk(tmp_path).answer(late, lambda: {"round": handler})
        assert found.kind == FAILED and "late" in found.head["reason"]
    assert handler.count == 1
    assert desk(tmp_path).answer(letter(1, session=8), lambda: {"round": handler}).kind == "round"


def test_a_damaged_last_answer_is_made_again(tmp_path: Path) -> None:
    handler = Counting()
    desk(tmp_path).answer(letter(), lambda: {"round": handler})
    (last,) = (tmp_path / "store").rglob("last.letter")
    last.write_bytes(last.read_bytes()[:-100])
    assert desk(tmp_path).answer(letter(), lambda: {"round": handler}).head["count"] == 2


@pytest.mark.parametrize("head", [{"run": "../../etc"}, {"run": 5}, {"serial": "1"}, {"session": True}])
def test_a_letter_of_no_run_is_refused(tmp_path: Path, head: dict[str, Any]) -> None:
    handler = Counting()
    found = desk(tmp_path).answer(letter(**head) if "serial" not in head else odd(head), lambda: {"round": handler})
    assert found.kind == FAILED and not handler.count
    assert not (tmp_path / "store").exists()


def odd(head: dict[str, Any]) -> Letter:
    return Letter("round", letter().head | head)


def test_a_server_learns_of_an_error_only_its_kind(tmp_path: Path) -> None:
    def broken(desk: Desk, asked: Letter) -> Letter:
        raise ArtifactError("user 42 of /home/me is damaged")

    def unfit(desk: Desk, asked: Letter) -> Letter:
        raise Unfit("has another foundation")

    found = desk(tmp_path).answer(letter(), lambda: {"round": broken})
    assert found.head["reason"] == "ArtifactError; the node's log says more"
    assert desk(tmp_path).answer(letter(), lambda: {"round": unfit}).head["reason"] == "has another foundation"
    assert "unknown kind" in desk(tmp_path).answer(letter(kind="odd"), dict).head["reason"]


def test_a_node_says_what_its_config_lacks() -> None:
    with pytest.raises(ConfigError, match="lacks store"):
        Desk.of({"dataset": "data"})


def test_a_node_keeps_its_number_and_its_first_word(tmp_path: Path) -> None:
    first = Roll(tmp_path)
    seen = [Seen(flower, f"key {flower}".encode(), "", "") for flower in (7, 5)]
    assert [first.number(one) for one in seen] == [0, 1]
    first.note(1, 30)
    first.note(1, 31)
    # The SuperLink has lost its database, and calls the nodes by other numbers.
    second = Roll(tmp_path)
    assert second.number(Seen(99, b"key 5", "", "")) == 1
    assert second.number(Seen(98, b"key 8", "", "")) == 2
    assert second.users == {1: 30}
    assert second.session > first.session
    assert [second.serial(), second.serial()] == [1, 2]
    path = tmp_path / "nodes.json"
    path.write_text(json.dumps({"nodes": 1}))
    with pytest.raises(ArtifactError, match="cannot be read"):
        Roll(tmp_path)
