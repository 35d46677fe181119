"""What a node answers to letters of runs with and without secure sums; no SuperLink is needed for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedpa.drivers.flower.desk import FAILED, Desk
from fedpa.drivers.flower.letter import Letter, packed, unpacked
from fedpa.drivers.flower.options import Options
from fedpa.drivers.flower.secure_work import SECURE, handlers, of_part, to_part
from fedpa.errors import ConfigError
from fedpa.federation.form import Refused
from fedpa.privacy.secagg.message import KEYS, PHASES, SHARES, UNMASK, Message
from fedpa.privacy.secagg.terms import Terms

RUN = "5eed5eed"


def letter(kind: str, serial: int = 1, parts: Any = (), **head: Any) -> Letter:
    return Letter(kind, {"run": RUN, "node": 0, "session": 1, "serial": serial, **head}, parts)


def reason(reply: Letter) -> str:
    assert reply.kind == FAILED
    return str(reply.head["reason"])


def test_messages_travel_in_letters() -> None:
    message = Message.new("0" * 32, SHARES, stayed=[1, 2**63])
    message.put("sealed", {2**40: b"\x00\xff"})
    message.arrays["vector"] = np.array([0, 2**64 - 1], np.uint64)
    found = of_part(unpacked(*packed(Letter(SECURE, {}, (to_part(message),)))).parts)
    assert found.header == message.header
    assert found.get("sealed", [2**40]) == {2**40: b"\x00\xff"}
    vector = found.arrays["vector"]
    assert isinstance(vector, np.ndarray) and vector.dtype == np.uint64 and vector.tolist() == [0, 2**64 - 1]
    with pytest.raises(Refused):
        of_part(())


@pytest.mark.parametrize("insists", [{"secure": "true"}, {"secure": True}, {"peers": "peers"}])
def test_a_node_that_insists_gives_nothing_in_the_clear(tmp_path: Path, insists: dict[str, Any]) -> None:
    desk = Desk.of({"dataset": "nowhere", "store": str(tmp_path), **insists})
    for serial, kind in enumerate(("prepare", "start")):
        for config in ({}, {"secure": False}, {"secure": "true"}, None):
            reply = desk.answer(letter(kind, serial, config=config), handlers)
            assert "gives masked sums alone" in reason(reply)
    assert "gives masked sums alone" in reason(desk.answer(letter("round", 5), handlers))
    other = Desk.of({"dataset": "nowhere", "store": str(tmp_path), "secure": ""})
    assert "gives masked" not in reason(other.answer(letter("round", 6), handlers))


def keys(**terms: Any) -> Message:
    made = Terms.new(range(5), **{"run": RUN, "purpose": "round", "number": 1, "length": 3, "form": "", **terms})
    return Message.new(made.session, KEYS, terms=made.to_json())


def ask(desk: Desk, serial: int, request: Message, **head: Any) -> Letter:
    return desk.answer(letter(SECURE, serial, (to_part(request),), **head), handlers)


def test_requests_are_answered_in_turn_and_refusals_say_why(tmp_path: Path) -> None:
    desk = Desk("nowhere", tmp_path)
    request = keys()
    reply = ask(desk, 1, request)
    assert reply.kind == SECURE and {"mask", "share"} <= reply.parts[0][1].keys()
    session = request.header["session"]
    assert "must come before" in reason(ask(desk, 2, Message.new(session, UNMASK, stayed=[0, 1, 2, 3])))
    assert "other keys of this node" in reason(ask(desk, 3, Message.new(session, SHARES)))
    few = request.header["terms"] | {"roster": [0, 1, 2, 3]}
    assert "expected at least 5" in reason(ask(desk, 4, Message({**request.header, "terms": few}, {})))
    assert "unknown phase" in reason(ask(desk, 5, Message.new(session, "more")))


def test_what_a_node_says_of_a_bad_vector_names_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log of the node says what is wrong; the server learns that something is."""
    from fedpa.drivers.flower import secure_work
    from fedpa.privacy.secagg.node import SecureNode
    from fedpa.privacy.secagg.server import SecureServer
    from fedpa.privacy.secagg.terms import ContentError

    def wrong(*_: object) -> None:
        raise ContentError("changes of up to 17 by 3 users")

    monkeypatch.setattr(secure_work, "_vector", wrong)
    desk = Desk("nowhere", tmp_path)
    made = Terms.new(range(5), run=RUN, purpose="round", number=1, length=3, form="")
    server = SecureServer(made)
    for serial, phase in enumerate(PHASES[:2], 1):
        for node, request in server.requests(phase).items():
            if node == 0:
                answer = of_part(ask(desk, serial, request).parts)
            else:
                other = SecureNode(tmp_path / f"other-{node}", node)
                answer = other.keys(request) if phase == KEYS else other.shares(request)
            server.take(node, answer)
    said = reason(ask(desk, 3, server.requests(PHASES[2])[0]))
    assert "its log says why" in said and "17" not in said


CONFIG: dict[str, Any] = {"dataset": "d", "out": "o", "secure": True}


def test_runs_of_fewer_than_five_nodes_are_refused() -> None:
    for least in (1, 4):
        with pytest.raises(ConfigError, match="expected 5 or more"):
            Options.of({**CONFIG, "min-nodes": least})
    assert Options.of({**CONFIG, "min-nodes": 5}).secure_threshold is None
    assert Options.of({**CONFIG, "min-nodes": 6, "secure-threshold": 5}).secure_threshold == 5
