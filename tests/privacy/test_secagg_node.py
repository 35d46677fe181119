"""A node refuses what would show more than a sum, answers nothing twice, and keeps no secret longer than it must."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedpa.privacy.secagg.keys import KeyPair
from fedpa.privacy.secagg.message import INPUT, KEYS, PHASES, SHARES, UNMASK, Message
from fedpa.privacy.secagg.server import SecureServer
from fedpa.privacy.secagg.terms import AbortError, ProtocolError
from secured import Nodes, added, drawn, terms_for

FIVE = {node: np.arange(4, dtype=np.int64) - node for node in range(5)}


def until(group: Nodes, last: str, **terms: Any) -> tuple[SecureServer, dict[int, Message]]:
    """A session up to a phase: its server, and that phase's requests, which no node has answered yet."""
    server = SecureServer(terms_for(group.vectors, **terms))
    for phase in PHASES:
        requests = server.requests(phase)
        if phase == last:
            return server, requests
        for node, answer in group.exchange(phase, requests):
            server.take(node, answer)
    raise AssertionError(last)


def change(message: Message, **header: Any) -> Message:
    return Message({**message.header, **header}, dict(message.arrays))


def without(message: Message, *names: str) -> Message:
    return Message(dict(message.header), {k: v for k, v in message.arrays.items() if k not in names})


@pytest.mark.parametrize("phase", PHASES[1:])
def test_no_request_is_answered_twice(tmp_path: Path, phase: str) -> None:
    group = Nodes(tmp_path, FIVE)
    _, requests = until(group, phase)
    group.answer(2, phase, requests[2])
    with pytest.raises(ProtocolError, match="no open session" if phase == UNMASK else "answered twice"):
        group.answer(2, phase, requests[2])


@pytest.mark.parametrize("phase", PHASES[1:])
def test_phases_cannot_be_skipped(tmp_path: Path, phase: str) -> None:
    group = Nodes(tmp_path, FIVE)
    _, requests = until(group, phase)
    later = PHASES[(PHASES.index(phase) + 1) % 4] or KEYS
    if phase != UNMASK:
        with pytest.raises(ProtocolError, match="must come before"):
            group.answer(2, later, change(requests[2], phase=later))
    with pytest.raises(ProtocolError, match="session"):
        group.answer(2, phase, change(requests[2], session="0" * 32))


@pytest.mark.parametrize(
    ("stayed", "reason"),
    [
        ([0, 1, 2], "3 nodes who stayed, expected at least 4"),
        ([0, 1, 2, 2], "does not fit"),
        ([0, 1, 3, 4], "does not fit the roster or this node"),
        ([0, 1, 2, 9], "does not fit the roster"),
        ([0, 1, 2, "3"], "is missing"),
        (None, "is missing"),
    ],
)
def test_a_list_of_those_who_stayed_that_is_short_or_odd_is_refused(tmp_path: Path, stayed: Any, reason: str) -> None:
    group = Nodes(tmp_path, FIVE)
    _, requests = until(group, UNMASK)
    with pytest.raises(ProtocolError, match=reason):
        group.answer(2, UNMASK, change(requests[2], stayed=stayed))
    group.answer(2, UNMASK, requests[2])  # a refusal shows nothing, and the right request is still answered


def test_of_every_node_a_share_of_one_secret_is_shown(tmp_path: Path) -> None:
    group = Nodes(tmp_path, FIVE)
    _, requests = until(group, UNMASK)
    answer = group.answer(2, UNMASK, change(requests[2], stayed=[0, 1, 2, 4]))
    assert sorted(answer.arrays) == ["key/3", "seed/0", "seed/1", "seed/2", "seed/4"]


def test_who_never_shared_its_secrets_cannot_have_stayed(tmp_path: Path) -> None:
    group = Nodes(tmp_path, FIVE, {SHARES: {4}})
    _, requests = until(group, UNMASK)
    with pytest.raises(ProtocolError, match="never shared"):
        group.answer(2, UNMASK, change(requests[2], stayed=[0, 1, 2, 3, 4]))


def test_too_few_keys_or_shares_are_refused(tmp_path: Path) -> None:
    group = Nodes(tmp_path / "a", FIVE)
    _, requests = until(group, SHARES)
    with pytest.raises(ProtocolError, match="3 nodes whose keys came, expected at least 4"):
        group.answer(0, SHARES, without(requests[0], "mask/3", "share/3", "mask/4", "share/4"))
    group = Nodes(tmp_path / "b", FIVE)
    _, requests = until(group, INPUT)
    with pytest.raises(ProtocolError, match="3 nodes who shared their secrets, expected at least 4"):
        group.answer(0, INPUT, without(requests[0], "sealed/3", "sealed/4"))


Arrays = dict[str, Any]


def swap(arrays: Arrays) -> None:
    arrays["mask/3"] = arrays["mask/2"]


def cross(arrays: Arrays) -> None:
    arrays["mask/3"] = arrays["share/2"]


def own(arrays: Arrays) -> None:
    arrays["share/1"] = KeyPair.new().public


def lose(arrays: Arrays) -> None:
    del arrays["share/3"]


def garbage(arrays: Arrays) -> None:
    arrays["share/3"] = b"-----BEGIN"


def stranger(arrays: Arrays) -> None:
    arrays["mask/9"] = arrays["share/9"] = KeyPair.new().public


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (swap, "alike"),
        (cross, "alike"),
        (own, "other keys of this node"),
        (lose, "missing"),
        (garbage, "P-384"),
        (stranger, "no node that belongs here"),
    ],
)
def test_keys_that_cannot_be_are_refused(tmp_path: Path, damage: Callable[[Arrays], None], reason: str) -> None:
    group = Nodes(tmp_path, FIVE)
    _, requests = until(group, SHARES)
    damage(requests[1].arrays)
    with pytest.raises(ProtocolError, match=reason):
        group.answer(1, SHARES, requests[1])


def flip(arrays: Arrays) -> None:
    sealed = bytearray(arrays["sealed/3"])
    sealed[40] ^= 1
    arrays["sealed/3"] = bytes(sealed)


def exchange(arrays: Arrays) -> None:
    arrays["sealed/2"], arrays["sealed/3"] = arrays["sealed/3"], arrays["sealed/2"]


def cut(arrays: Arrays) -> None:
    arrays["sealed/3"] = arrays["sealed/3"][:-1]


@pytest.mark.parametrize("damage", [flip, exchange, cut])
def test_shares_that_were_altered_are_refused(tmp_path: Path, damage: Callable[[Arrays], None]) -> None:
    group = Nodes(tmp_path, FIVE)
    _, requests = until(group, INPUT)
    damage(requests[1].arrays)
    with pytest.raises(ProtocolError, match="altered"):
        group.answer(1, INPUT, requests[1])


def test_shares_of_another_session_are_refused(tmp_path: Path) -> None:
    """Same keys, other terms: nothing sealed for one session opens in another."""
    group = Nodes(tmp_path, FIVE)
    _, requests = until(group, INPUT)
    path = tmp_path / "node-1" / "session.json"
    session = json.loads(path.read_text())
    session["terms"]["number"] = 2
    path.write_text(json.dumps(session))
    with pytest.raises(ProtocolError, match="another session"):
        group.answer(1, INPUT, requests[1])


@pytest.mark.parametrize("place", [0, 5, -1])  # the holder's number, the secret, its padding
@pytest.mark.parametrize("kind", ["seed", "key"])
def test_one_wrong_share_is_found_and_done_without_or_said(tmp_path: Path, kind: str, place: int) -> None:
    def altered(phase: str, node: int, message: Message) -> Message:
        if phase == UNMASK and node == 1:
            for name, content in message.arrays.items():
                if name.startswith(kind) and isinstance(content, bytes):
                    wrong = bytearray(content)
                    wrong[place] ^= 64
                    message.arrays[name] = bytes(wrong)
        return message

    vectors = drawn(7, 9)
    renumbered = dict(enumerate(vectors.values()))
    group = Nodes(tmp_path / "a", renumbered, {INPUT: {6}}, answers=altered)
    total, stayed = group.sum()  # 6 show shares, it takes 5
    assert total.tolist() == added(renumbered, stayed).tolist()
    group = Nodes(tmp_path / "b", renumbered, {INPUT: {6}, UNMASK: {5}}, answers=altered)
    with pytest.raises(AbortError, match="altered"):
        group.sum()


def test_a_vector_of_another_length_is_refused(tmp_path: Path) -> None:
    group = Nodes(tmp_path, FIVE)
    _, requests = until(group, INPUT)
    group.vectors[1] = np.zeros(5, np.int64)
    with pytest.raises(ProtocolError, match="a vector of 5 where 4 were declared"):
        group.answer(1, INPUT, requests[1])


def test_what_a_server_cannot_use_is_left_out(tmp_path: Path) -> None:
    def altered(phase: str, node: int, message: Message) -> Message:
        if phase == INPUT and node == 0:
            message.arrays["vector"] = np.zeros(4, np.float64)
        return message

    total, stayed = Nodes(tmp_path, FIVE, answers=altered).sum()
    assert stayed == [1, 2, 3, 4]
    assert total.tolist() == added(FIVE, stayed).tolist()


def test_a_server_takes_no_answer_twice_nor_of_strangers(tmp_path: Path) -> None:
    group = Nodes(tmp_path, FIVE)
    server, requests = until(group, INPUT)
    answer = group.answer(1, INPUT, requests[1])
    server.take(1, answer)
    for node, reason in ((1, "already"), (9, "not asked")):
        with pytest.raises(ProtocolError, match=reason):
            server.take(node, answer)
    with pytest.raises(ProtocolError, match="does not follow"):
        server.requests(KEYS)


def test_a_file_for_the_owner_alone_that_goes_with_the_round(tmp_path: Path) -> None:
    group = Nodes(tmp_path, FIVE)
    path = tmp_path / "node-2" / "session.json"
    server = SecureServer(terms_for(FIVE))
    gone: dict[str, set[str]] = {
        KEYS: set(),
        SHARES: {"share_secret"},
        INPUT: {"share_secret", "mask_secret", "seed", "channels"},
    }
    for phase in PHASES:
        for node, answer in group.exchange(phase, server.requests(phase)):
            server.take(node, answer)
        if phase == UNMASK:
            break
        assert path.stat().st_mode & 0o777 == 0o600 and path.parent.stat().st_mode & 0o777 == 0o700
        session = json.loads(path.read_text())
        assert session["stage"] == phase and not gone[phase] & session.keys()
    assert sorted(file.name for file in path.parent.iterdir()) == ["lock", "released.json"]


def test_a_new_session_ends_an_old_one(tmp_path: Path) -> None:
    group = Nodes(tmp_path, FIVE)
    _, old = until(group, UNMASK)
    group.sum()
    with pytest.raises(ProtocolError, match="no open session"):
        group.answer(1, UNMASK, old[1])
    _, fresh = until(group, UNMASK)
    group.node(1).forget()
    with pytest.raises(ProtocolError, match="no open session"):
        group.answer(1, UNMASK, fresh[1])


def test_keys_and_masks_are_drawn_anew_for_every_session(tmp_path: Path) -> None:
    group = Nodes(tmp_path, FIVE)
    group.sum()
    first = group.log.copy()
    group.log.clear()
    group.sum()
    for phase, name in ((KEYS, "mask"), (KEYS, "share"), (SHARES, "commitment"), (INPUT, "vector")):
        both = [
            {node: m.arrays[name] for p, node, of, m in log if (p, of) == (phase, "answer")}
            for log in (first, group.log)
        ]
        assert all(np.any(np.asarray(both[0][node]) != np.asarray(both[1][node])) for node in FIVE)


def test_the_same_vector_is_summed_anew_over_the_same_nodes_alone(tmp_path: Path) -> None:
    """Otherwise the difference of the two sums is one node's vector."""
    group = Nodes(tmp_path, FIVE)
    total, _ = group.sum()
    again, _ = group.sum()
    assert total.tolist() == again.tolist()
    for phase in (SHARES, INPUT):
        group.drop, group.gone, group.errors = {phase: {4}}, set(), []
        with pytest.raises(AbortError, match="nothing was unmasked"):
            group.sum()
        assert all("summed over 5 nodes before, not the same ones" in str(error) for _, _, error in group.errors)
        assert group.errors
    group.drop, group.gone = {INPUT: {4}}, set()
    group.vectors = {node: vector + 1 for node, vector in FIVE.items()}
    _, stayed = group.sum()
    assert stayed == [0, 1, 2, 3]


def test_in_another_run_numbers_stand_for_other_nodes(tmp_path: Path) -> None:
    group = Nodes(tmp_path, FIVE)
    group.sum()
    group.drop = {INPUT: {4}}
    _, stayed = group.sum(run="0123")
    assert stayed == [0, 1, 2, 3]


def test_two_messages_at_once_are_not_answered(tmp_path: Path) -> None:
    group = Nodes(tmp_path, FIVE)
    _, requests = until(group, SHARES)
    with group.node(1).vault.locked(), pytest.raises(ProtocolError, match="at work"):
        group.answer(1, SHARES, requests[1])
    group.answer(1, SHARES, requests[1])


def test_terms_that_differ_between_nodes_give_no_shares(tmp_path: Path) -> None:
    """A server that tells one node another length is found out by the seals."""

    def lie(phase: str, node: int, message: Message) -> Message:
        if phase == KEYS and node == 0:
            terms = replace(terms_for(FIVE), session=message.header["session"], number=7)
            return change(message, terms=terms.to_json())
        return message

    group = Nodes(tmp_path, FIVE, requests=lie)
    with pytest.raises(AbortError):
        group.sum()
    assert {str(error).split("node ")[1][0] for phase, node, error in group.errors if node != 0} == {"0"}
