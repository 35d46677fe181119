"""What a node does for a run with secure aggregation: it gives masked vectors, and what takes masks off sums alone.

A SuperNode whose ``--node-config`` says ``secure=true`` gives nothing else in any run, whatever a server asks. With
``peers="FILE"`` (and ``key="FILE"``, its own) it masks only with nodes whose public keys are in the file.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fedpa.drivers.flower.desk import Desk, Handler, Unfit
from fedpa.drivers.flower.letter import Letter
from fedpa.errors import ConfigError
from fedpa.federation.form import Message as Part
from fedpa.federation.form import Refused

if TYPE_CHECKING:
    from fedpa.privacy.secagg.message import Message
    from fedpa.privacy.secagg.terms import Terms

__all__ = ["ROUND", "SECURE", "TALLY", "handlers", "of_part", "to_part"]

SECURE = "secure"
"""Kind of the letters of a secure sum, in all its phases."""

TALLY, ROUND = "tally", "round"
"""What is summed."""

_VECTOR = "vector"
_FOLDER = "secure"
_log = logging.getLogger(__name__)
Ints = npt.NDArray[np.int64]


def handlers() -> Mapping[str, Handler]:
    """What to do by kind of letter, with and without secure aggregation."""
    return {"prepare": _prepare, "start": _start, "round": _round, "finish": _finish, SECURE: _secure}


def to_part(message: Message) -> Part:
    """A message of a secure sum as part of a letter."""
    arrays = {
        name: np.frombuffer(content, np.uint8) if isinstance(content, bytes) else content
        for name, content in message.arrays.items()
    }
    return dict(message.header), arrays


def of_part(parts: tuple[Part, ...]) -> Message:
    """The message that a letter begins with.

    Raises
    ------
    Refused
        If it has none.
    """
    from fedpa.privacy.secagg.message import Message

    if not parts:
        raise Refused("header", "a letter without a part")
    header, arrays = parts[0]
    return Message(
        dict(header),
        {name: one if name == _VECTOR else np.asarray(one).tobytes() for name, one in arrays.items()},
    )


def _insists(desk: Desk) -> bool:
    return desk.peers is not None or desk.secure.lower() == "true"


def _asks(desk: Desk, letter: Letter) -> bool:
    """Whether the run is one with secure aggregation.

    Raises
    ------
    Unfit
        If it is not, and the node insists.
    """
    config = letter.head.get("config")
    asked = isinstance(config, dict) and config.get("secure") is True
    if _insists(desk) and not asked:
        raise Unfit("gives masked sums alone, and the run does not ask for them", "start the run with secure=true")
    return asked


def _prepare(desk: Desk, letter: Letter) -> Letter:
    from fedpa.drivers.flower import work

    asked = _asks(desk, letter)
    found = work.prepare(desk, letter)
    return Letter(found.kind, {"users": 0}) if asked else found


def _start(desk: Desk, letter: Letter) -> Letter:
    from fedpa.drivers.flower import work

    asked = _asks(desk, letter)
    found = work.start(desk, letter)
    return Letter(found.kind, {**found.head, "users": 0}) if asked else found


def _round(desk: Desk, letter: Letter) -> Letter:
    from fedpa.drivers.flower import work

    if _insists(desk):
        raise Unfit("gives masked sums alone, and was asked for others")
    return work.round_(desk, letter)


def _finish(desk: Desk, letter: Letter) -> Letter:
    from fedpa.drivers.flower import work

    return work.finish_(desk, letter)


def _secure(desk: Desk, letter: Letter) -> Letter:
    """Answer one request of a secure sum."""
    from fedpa.privacy.secagg.identity import Identity, Peers
    from fedpa.privacy.secagg.message import INPUT, KEYS, SHARES, UNMASK
    from fedpa.privacy.secagg.node import SecureNode
    from fedpa.privacy.secagg.terms import ContentError, ProtocolError

    node = SecureNode(
        desk.store / _FOLDER,
        letter.head["node"],
        identity=None if desk.key is None else Identity.read(Path(desk.key)),
        peers=None if desk.peers is None else Peers.read(Path(desk.peers)),
    )
    request = of_part(letter.parts)
    phase = request.header.get("phase")
    if phase == KEYS:
        pinned = "" if desk.peers else "; the other nodes' keys are not pinned (peers), so that the server is trusted"
        _log.warning("secure aggregation is experimental and has not been reviewed%s", pinned)
    answers = {
        KEYS: lambda: node.keys(request),
        SHARES: lambda: node.shares(request),
        INPUT: lambda: node.masked(request, lambda terms: _vector(desk, letter, terms)),
        UNMASK: lambda: node.unmask(request),
    }
    if phase not in answers:
        raise Refused("header", "an unknown phase of a secure sum")
    try:
        answer = answers[phase]()
    except ContentError as error:
        _log.error("%s", error)
        raise Unfit("what it computed must not be summed; its log says why") from error
    except (ProtocolError, ConfigError) as error:
        raise Unfit(error.message) from error
    return Letter(SECURE, {"phase": phase}, (to_part(answer),))


def _vector(desk: Desk, letter: Letter, terms: Terms) -> Ints:
    """What is to be masked: computed here, after all checks that a server could make if it saw it."""
    from fedpa.privacy.secagg.terms import ProtocolError

    if terms.run != letter.head["run"]:
        raise ProtocolError("the terms are of another run")
    if terms.purpose == TALLY:
        return _item_counts(desk, letter, terms)
    if terms.purpose == ROUND:
        return _upload(desk, letter, terms)
    raise ProtocolError(f"unknown purpose {terms.purpose[:64]!r}")


def _item_counts(desk: Desk, letter: Letter, terms: Terms) -> Ints:
    from fedpa.drivers.flower import work
    from fedpa.federation.tally import Tally
    from fedpa.privacy.secagg.contents import TallyVector

    _asks(desk, letter)
    found = work.prepare(desk, letter)
    if not found.parts:
        raise Unfit("the run's method counts no items")
    arrays = found.parts[0][1]
    content = TallyVector(len(arrays["ends"]), arrays["views"].shape[1])
    _check_form(terms, content.slots.digest)
    return content.pack(Tally(arrays["ends"], arrays["views"], arrays["clicks"]))


def _upload(desk: Desk, letter: Letter, terms: Terms) -> Ints:
    from fedpa.drivers.flower.work import opened
    from fedpa.federation.wire import unpack_order
    from fedpa.privacy.secagg.contents import RoundVector
    from fedpa.privacy.secagg.terms import ProtocolError

    node = opened(desk, terms.run, letter.head)
    layout, settings = node.shard.layout, node.method.settings
    order, base = unpack_order(layout, settings, *letter.parts[1])
    if (order.run, order.number) != (terms.run, terms.number):
        raise ProtocolError(f"terms of round {terms.number} with an order of round {order.number}")
    content = RoundVector(layout, settings, _limits(letter.head), train=order.train)
    _check_form(terms, content.slots.digest)
    base = node.base_of(base)
    sums = node.evaluate(order, base)
    upload = node.train(order, base).upload if order.train else None
    return content.pack(upload, sums, users=len(node.users))


def _limits(head: Mapping[str, Any]) -> Any:
    from fedpa.privacy.secagg.contents import Limits

    change, users = head.get("change"), head.get("most_users")
    if type(change) is not float or type(users) is not int:
        raise Refused("header", "a secure sum without limits")
    return Limits(change, users)


def _check_form(terms: Terms, digest: str) -> None:
    from fedpa.privacy.secagg.terms import ProtocolError

    if terms.form != digest:
        raise ProtocolError("the server sums other scopes, groups or items than this node has")
