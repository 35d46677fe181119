"""Letters on their way: sent, waited for, and sent again when what should have answered them died.

`Grid.send_and_receive` sleeps three seconds between looks, so that messages are pushed and pulled here. What Flower
does not do itself: a message that a node took before it died is gone. It is sent again when the node's SuperNode is
back, when Flower says that the ClientApp died, and when there has been no answer for long. A letter that arrives twice
is answered twice, with the same bytes, and costs little (`fedpa.drivers.flower.desk`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import httpx
from flwr.app import Message
from flwr.serverapp import Grid

from fedpa.drivers.flower.letter import Letter, of_record, to_record
from fedpa.errors import FedpaError
from fedpa.federation.form import Reason, Refused

__all__ = ["Answer", "Post", "Seen"]

_log = logging.getLogger(__name__)
_POLL_SECONDS = 0.2
_LOOK_SECONDS = 1.0
_QUIET_SECONDS = 120.0
_QUIET_TIMES = 4  # the slowest answer
_UNREACHABLE_SECONDS = 60.0
_CRASHES = 5
_DAY = 86400.0
_GONE, _RAISED = 5, (1, 2, 7)  # flwr.common.constant.ErrorCode: node unavailable; the app raised, or is not accepted
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Seen:
    """A SuperNode that is online.

    Attributes
    ----------
    flower : int
        Flower's number of it.
    key : bytes
        Its public key.
    name : str
        As registered; may be empty.
    since : str
        When it was last started.
    """

    flower: int
    key: bytes
    name: str
    since: str


@dataclass(frozen=True)
class Answer:
    """What came of a letter.

    Attributes
    ----------
    flower : int
        Flower's number of the node.
    asked : Letter
    letter : Letter or None
        What it answered; None if it cannot.
    reason : str
        Why it cannot: ``crashed``, ``failed`` or ``refused``, with what is known of it.
    """

    flower: int
    asked: Letter
    letter: Letter | None
    reason: str = ""


@dataclass
class _Waiting:
    flower: int
    letter: Letter
    since: str
    sent: float
    tries: int = 0
    crashes: int = 0
    ids: set[str] = field(default_factory=set)


class Post:
    """Sends letters to SuperNodes and collects what they answer.

    Parameters
    ----------
    grid : Grid
    ttl : float
        Seconds after which a letter that was not taken is not delivered any more.

    Attributes
    ----------
    refusals : list of (int, Reason)
        Nodes whose answers could not be read, and why.
    """

    def __init__(self, grid: Grid, *, ttl: float = _DAY) -> None:
        self._grid, self._ttl = grid, ttl
        self.refusals: list[tuple[int, Reason]] = []
        self._waiting: list[_Waiting] = []
        self._seen: dict[int, Seen] = {}
        self._looked = float("-inf")
        self._slowest = 0.0

    def online(self, *, fresh: bool = False) -> dict[int, Seen]:
        """SuperNodes that are online, by Flower's number; asked at most once a second unless `fresh`."""
        now = time.monotonic()
        if fresh or now - self._looked > _LOOK_SECONDS:
            infos = _reached(lambda: list(self._grid.get_nodes()))
            self._seen = {
                info.node_id: Seen(info.node_id, info.public_key, info.name, info.last_activated_at) for info in infos
            }
            self._looked = now
        return self._seen

    def send(self, letters: Mapping[int, Letter]) -> None:
        """Send each SuperNode its letter."""
        now, seen = time.monotonic(), self.online(fresh=True)
        fresh = [
            _Waiting(flower, letter, seen[flower].since if flower in seen else "", now)
            for flower, letter in letters.items()
        ]
        self._waiting += fresh
        self._push(fresh)

    def waiting(self, kind: str) -> set[int]:
        """SuperNodes that have not answered a letter of a kind."""
        return {one.flower for one in self._waiting if one.letter.kind == kind}

    def forget(self, kind: str) -> set[int]:
        """Wait no more for answers to a kind of letter; returns the SuperNodes that have given none."""
        gone = self.waiting(kind)
        self._waiting = [one for one in self._waiting if one.letter.kind != kind]
        return gone

    def collect(self) -> list[Answer]:
        """Look once for answers, and send again what needs to be; waits a moment if there was nothing."""
        if not self._waiting:
            return []
        by_id = {id_: one for one in self._waiting for id_ in one.ids}
        answers = []
        for message in _reached(lambda: list(self._grid.pull_messages(list(by_id)))):
            one = by_id.get(message.metadata.reply_to_message_id)
            if one is None or one not in self._waiting:
                continue
            one.ids.discard(message.metadata.reply_to_message_id)
            answer = self._opened(one, message)
            if answer is not None:
                self._waiting.remove(one)
                answers.append(answer)
        self._again()
        if not answers:
            time.sleep(_POLL_SECONDS)
        return answers

    def _opened(self, one: _Waiting, message: Message) -> Answer | None:
        """What a reply says; None if the letter is to be sent again."""
        if message.has_error():
            code, text = message.error.code, message.error.reason or ""
            if code == _GONE:
                one.ids.clear()
                self._seen.pop(one.flower, None)
                return None
            if code in _RAISED:
                return Answer(one.flower, one.letter, None, f"failed: {text}")
            one.crashes += 1
            if one.crashes >= _CRASHES:
                return Answer(one.flower, one.letter, None, f"crashed {one.crashes} times: {text}")
            return None
        try:
            letter = of_record(message.content)
        except Refused as refusal:
            self.refusals.append((int(one.letter.head["node"]), refusal.reason))
            return Answer(one.flower, one.letter, None, f"refused: {refusal.message}")
        self._slowest = max(self._slowest, time.monotonic() - one.sent)
        return Answer(one.flower, one.letter, letter)

    def _again(self) -> None:
        """Send again what was taken by something that died, or has had no answer for long, to who is there."""
        seen, now = self.online(), time.monotonic()
        quiet = max(_QUIET_SECONDS, _QUIET_TIMES * self._slowest) if self._slowest else 4 * _QUIET_SECONDS
        stale = []
        for one in self._waiting:
            if one.flower not in seen:
                continue
            since = seen[one.flower].since
            silent = now - one.sent > quiet * 2**one.tries
            if since != one.since or not one.ids or silent:
                one.since, one.tries = since, one.tries + silent
                stale.append(one)
        if stale:
            _log.info("%s: sent again to %d nodes", stale[0].letter.kind, len(stale))
            self._push(stale)

    def _push(self, waiting: list[_Waiting]) -> None:
        messages = [
            Message(
                to_record(one.letter),
                one.flower,
                f"query.{one.letter.kind}",
                ttl=self._ttl,
                group_id=str(one.letter.head.get("round", one.letter.kind)),
            )
            for one in waiting
        ]
        now = time.monotonic()
        for one, id_ in zip(waiting, _reached(lambda: list(self._grid.push_messages(messages))), strict=False):
            one.sent = now
            if id_:
                one.ids.add(id_)


def _reached(call: Callable[[], _Result]) -> _Result:
    """The result of a call of the SuperLink, which may be gone for a minute.

    Flower's client waits by itself while nobody listens; an answer that says that something broke in the middle of a
    request, it passes on.

    Raises
    ------
    FedpaError
        If the SuperLink has answered nothing else for a minute.
    """
    begin = time.monotonic()
    while True:
        try:
            return call()
        except httpx.HTTPError as error:
            if time.monotonic() - begin > _UNREACHABLE_SECONDS:
                raise FedpaError(
                    f"the SuperLink does not answer ({error})",
                    "start it again with its --database file, then `flwr run` again: the run goes on",
                ) from error
            _log.warning("the SuperLink: %s; asked again", error)
            time.sleep(1.0)
