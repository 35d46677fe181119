"""Which SuperNodes take part in a run: asked for their item counts, told to start, ready for rounds."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

from fedpa.drivers.flower.letter import Letter
from fedpa.drivers.flower.post import Answer, Post
from fedpa.drivers.flower.roll import Roll
from fedpa.federation.form import Message

__all__ = ["Members"]

_log = logging.getLogger(__name__)
_SAY_SECONDS = 30.0
_PAUSE_SECONDS = 0.5
_USERS = 1 << 40


class Members:
    """SuperNodes that are in a run.

    Parameters
    ----------
    post : Post
    roll : Roll
    run : str
        Id of the run.
    config : mapping
        What every node is told of it.
    least : int
        How many nodes there must be.
    deadline : float
        Seconds for which those are waited for who were asked but are not needed.
    only : frozenset of int, optional
        Nodes that are asked; by default all.

    Attributes
    ----------
    told : tuple of Message
        What those who start are told beside the config: everybody's item counts, where there are some.
    """

    def __init__(
        self,
        post: Post,
        roll: Roll,
        run: str,
        config: Mapping[str, Any],
        *,
        least: int,
        deadline: float,
        only: frozenset[int] | None = None,
    ) -> None:
        self._post, self._roll, self._run, self._config = post, roll, run, dict(config)
        self._least, self._deadline, self._only = least, deadline, only
        self.told: tuple[Message, ...] = ()
        self._flower: dict[int, int] = {}
        self._done: dict[str, dict[int, Letter]] = {"prepare": {}, "start": {}}
        self._unfit: dict[int, str] = {}  # and when they were started

    @property
    def ready(self) -> list[int]:
        """Nodes that have started the run and are online, ascending."""
        online = self._post.online()
        return sorted(node for node in self._done["start"] if self._flower[node] in online)

    def flower(self, node: int) -> int:
        """Flower's number of a node."""
        return self._flower[node]

    def held(self, node: int) -> list[int]:
        """The generations that a node said it holds when it started."""
        found = self._done["start"][node].head.get("held")
        return [n for n in found if isinstance(n, int)] if isinstance(found, list) else []

    def letter(self, kind: str, node: int, head: Mapping[str, Any], parts: tuple[Message, ...] = ()) -> Letter:
        """A letter of this run to a node, with a number of its own."""
        own = {"run": self._run, "node": node, "session": self._roll.session, "serial": self._roll.serial()}
        return Letter(kind, {**head, **own}, parts)

    def muster(self, kind: str) -> dict[int, Letter]:
        """Ask all who come to ``prepare`` or ``start``, until enough have answered, and all who were asked by then."""
        begin = said = time.monotonic()
        while True:
            self._invite(kind)
            for answer in self._post.collect():
                self.heard(answer)
            found, now = self._done[kind], time.monotonic()
            enough = len(self.ready if kind == "start" else found) >= self._least
            if enough and (not self._post.waiting(kind) or now - begin > self._deadline):
                return dict(found)
            if now - said > _SAY_SECONDS:
                said = now
                _log.info("%s: %d of %d nodes so far", kind, len(found), self._least)
            if not self._post.waiting(kind):
                time.sleep(_PAUSE_SECONDS)

    def settle(self) -> None:
        """Hear from newcomers without waiting for them, but wait if there are too few for a round."""
        self._invite("start")
        if self._post.waiting("start"):
            for answer in self._post.collect():
                self.heard(answer)
        if len(self.ready) < self._least:
            _log.warning("%d of %d nodes are online: the next round waits", len(self.ready), self._least)
            self.muster("start")

    def heard(self, answer: Answer) -> None:
        """Note what a SuperNode answered to being asked to prepare or start."""
        kind, letter, node = answer.asked.kind, answer.letter, int(answer.asked.head["node"])
        if kind not in self._done:
            return
        users = None if letter is None or letter.kind != kind else letter.head.get("users")
        if letter is not None and isinstance(users, int) and 0 <= users < _USERS:
            self._flower[node] = answer.flower
            self._done[kind][node] = letter
            self._roll.note(node, users)
            if kind == "start" and "continues" in self._config and letter.head.get("handed") is not True:
                _log.warning("node %d: was no part of the earlier run; its users begin as new ones", node)
            _log.info("node %d: %s, %d users", node, kind, users)
            return
        reason = answer.reason if letter is None else str(letter.head.get("reason", "an odd answer"))
        seen = self._post.online().get(answer.flower)
        self._unfit[answer.flower] = "" if seen is None else seen.since
        _log.warning("node %d: cannot %s: %s", node, kind, reason[:500])

    def lost(self, node: int) -> None:
        """A node that is to be told again to start."""
        self._done["start"].pop(node, None)

    def _invite(self, kind: str) -> None:
        """Ask SuperNodes that were not asked yet; one that did not fit is asked again when it was started anew."""
        done, waiting = {self._flower[node] for node in self._done[kind]}, self._post.waiting(kind)
        fresh = [
            seen
            for flower, seen in self._post.online().items()
            if flower not in done
            and flower not in waiting
            and self._unfit.get(flower) != seen.since
            and (self._only is None or self._roll.number(seen) in self._only)
        ]
        parts = self.told if kind == "start" else ()
        letters = {
            seen.flower: self.letter(kind, self._roll.number(seen), {"config": self._config}, parts) for seen in fresh
        }
        if letters:
            self._post.send(letters)
