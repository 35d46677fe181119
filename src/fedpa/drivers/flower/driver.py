"""The nodes of a run on Flower, as the coordinator sees them.

One letter a round and node: it scores the state and trains from it, since a message costs Flower a new process. Nodes
may come at any time: they start from nothing, with the item counts of those who were there at the start. A node that
misses the deadline is left out of the round, and asked again in the next one if it is online then.
"""

from __future__ import annotations

import functools
import json
import logging
import operator
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedpa.drivers.flower.letter import UNSTARTED, Letter
from fedpa.drivers.flower.members import Members
from fedpa.drivers.flower.post import Answer, Post
from fedpa.drivers.flower.roll import Roll
from fedpa.errors import ArtifactError, FedpaError
from fedpa.federation.form import Message, Reason, Refused, check_origin
from fedpa.federation.kept import EVERYBODY, TALLY, load_message, save_message
from fedpa.federation.order import Base, Order, Report, Sums
from fedpa.federation.parameters import Layout
from fedpa.federation.wire import pack_order, pack_tally, unpack_report, unpack_sums, unpack_tally
from fedpa.settings import Settings

__all__ = ["FlowerDriver", "Terms"]

_log = logging.getLogger(__name__)
_SILENT_ROUNDS = 3


@dataclass(frozen=True)
class Terms:
    """What a driver has to know of a run.

    Attributes
    ----------
    run : str
        Its id.
    config : dict
        What every node is told of it.
    layout : Layout
    settings : Settings
    items : int
        Size of the catalogue.
    room : Path
        Folder of the unfinished run.
    least : int
        A round begins when so many nodes are ready.
    deadline : float
        Seconds that a node has for its part of a round.
    begin : tuple of Message
        What nodes are told beside everybody's item counts when they start.
    only : frozenset of int or None
        Nodes that are asked; None: all.
    """

    run: str
    config: dict[str, Any]
    layout: Layout
    settings: Settings
    items: int
    room: Path
    least: int
    deadline: float
    begin: tuple[Message, ...] = ()
    only: frozenset[int] | None = None


class FlowerDriver:
    """Nodes that are SuperNodes.

    Parameters
    ----------
    post : Post
    terms : Terms

    Attributes
    ----------
    counts : Counter of str
        How often so far a node was ``late`` with an answer, ``crashed``, ``failed`` or was ``refused``.
    users : dict of int to int
        How many users each node has said that it has.
    """

    apart = True

    def __init__(self, post: Post, terms: Terms) -> None:
        self._post, self._terms = post, terms
        roll = Roll(terms.room)
        self._members = Members(
            post, roll, terms.run, terms.config, least=terms.least, deadline=terms.deadline, only=terms.only
        )
        self.users = roll.users
        self.counts: Counter[str] = Counter()
        self._current: list[int] = []
        self._reports: tuple[int, dict[int, Report]] = (0, {})

    @property
    def nodes(self) -> Sequence[int]:
        """Numbers of the nodes that the next round is for; they change only between rounds."""
        return self._current

    def start(self) -> dict[int, list[int]]:
        """Wait for enough nodes, sum their item counts, and have them ready; the generations that each holds."""
        total = (self._saved_tally() or self._counted(),) if self._terms.settings.item_counts else ()
        self._members.told = (*total, *self._terms.begin)
        self._members.muster("start")
        self._current = self._members.ready
        return {node: self._members.held(node) for node in self._current}

    def evaluate(self, order: Order, bases: Mapping[int, Base]) -> dict[int, Sums]:
        """Have nodes score the order's state and, if it asks for that, train from it; `train` gives the reports."""
        for _ in range(_SILENT_ROUNDS):
            sums, reports = self._round(order, bases)
            if sums:
                self._reports = order.number, reports
                return sums
            _log.warning("no node answered")
            self._members.settle()
        raise FedpaError(
            f"round {order.number}: no node answered within {self._terms.deadline:g} seconds, {_SILENT_ROUNDS} times",
            "look into the nodes' logs or raise the deadline, then `flwr run` again: the run goes on",
        )

    def train(self, order: Order, bases: Mapping[int, Base]) -> dict[int, Report]:
        """What nodes answered to the same order when it was given to `evaluate`."""
        if self._reports[0] != order.number:
            self.evaluate(order, bases)
        self._members.settle()
        self._current = self._members.ready
        return self._reports[1]

    def refusals(self) -> list[tuple[int, Reason]]:
        """Nodes whose answers could not be read since this was last asked, and why."""
        found, self._post.refusals = self._post.refusals, []
        return found

    def close(self) -> None:
        """Nodes need not be told."""

    def finish(
        self, order: Order, bases: Mapping[int, Base], summary: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]
    ) -> list[int]:
        """Have nodes keep what the run came to; returns those that do.

        Parameters
        ----------
        order : Order
            With the state of the best round.
        bases : mapping of int to Base
            Per node, what its devices kept of it.
        summary : mapping
            The run's.
        lines : sequence of mapping
            Of its metrics, one per round.
        """
        text = np.frombuffer(json.dumps(list(lines)).encode(), np.uint8)
        lines_part: Message = {"kind": "lines"}, {"lines": text}
        own = {node: (pack_order(self._terms.layout, order, base), lines_part) for node, base in bases.items()}
        answers = self._ask("finish", own, {"summary": summary})
        missing = sorted(bases.keys() - answers.keys())
        if missing:
            _log.warning("nodes %s: did not hear that the run is finished", ", ".join(map(str, missing)))
        return sorted(answers)

    def _round(self, order: Order, bases: Mapping[int, Base]) -> tuple[dict[int, Sums], dict[int, Report]]:
        own = {node: (pack_order(self._terms.layout, order, base),) for node, base in bases.items()}
        sums: dict[int, Sums] = {}
        reports: dict[int, Report] = {}
        for node, letter in self._ask("round", own, {"round": order.number}).items():
            try:
                sums[node], report = self._read(order, node, letter)
            except Refused as refusal:
                self._refuse(node, refusal)
                continue
            if report is not None:
                reports[node] = report
            begun = letter.head.get("from")
            if begun != bases[node].generation:
                lost = bases[node].generation
                _log.warning(
                    "node %d: lost what its devices kept of round %d, went on from round %s", node, lost, begun
                )
        return sums, reports

    def _read(self, order: Order, node: int, letter: Letter) -> tuple[Sums, Report | None]:
        """Both parts of an answer; whether what they say can be true is asked by the coordinator."""
        if len(letter.parts) != 1 + order.train:
            raise Refused("header", f"expected {1 + order.train} parts, found {len(letter.parts)}")
        sums = unpack_sums(order.run, order.number, node, *letter.parts[0])
        if not order.train:
            return sums, None
        header, arrays = letter.parts[1]
        report = unpack_report(self._terms.layout, self._terms.settings, header, arrays)
        check_origin(header, order.run, order.number, node)
        return sums, report

    def _ask(self, kind: str, own: Mapping[int, tuple[Message, ...]], head: Mapping[str, Any]) -> dict[int, Letter]:
        """Send nodes letters of one kind and wait for the answers, at most until the deadline."""
        end = time.monotonic() + self._terms.deadline
        by_flower = {self._members.flower(node): node for node in own}
        self._post.send({f: self._members.letter(kind, node, head, own[node]) for f, node in by_flower.items()})
        answers: dict[int, Letter] = {}
        while self._post.waiting(kind):
            for answer in self._post.collect():
                if answer.asked.kind != kind:
                    self._members.heard(answer)
                elif (letter := self._good(by_flower[answer.flower], answer)) is not None:
                    answers[by_flower[answer.flower]] = letter
            if time.monotonic() > end:
                break
        for flower in self._post.forget(kind):
            self.counts["late"] += 1
            _log.warning("node %d: late; %s goes on without it", by_flower[flower], kind)
        return answers

    def _good(self, node: int, answer: Answer) -> Letter | None:
        """The answer, if the node did what it was asked."""
        letter, reason = answer.letter, answer.reason
        if letter is not None and letter.kind == answer.asked.kind:
            return letter
        if letter is not None:
            reason = f"failed: {letter.head.get('reason', '')}"
            if UNSTARTED in reason:
                self._members.lost(node)
        self.counts[reason.split(":")[0].split(" ")[0]] += 1
        _log.warning("node %d: %s", node, reason[:500])
        return None

    def _refuse(self, node: int, refusal: Refused) -> None:
        self.counts["refused"] += 1
        self._post.refusals.append((node, refusal.reason))
        _log.warning("node %d: %s", node, refusal.message)

    def _counted(self) -> Message:
        """The sum of the item counts of those who are there, noted for those who come later."""
        run, periods = self._terms.run, self._terms.settings.item_counts
        tallies = []
        for node, letter in self._members.muster("prepare").items():
            try:
                if len(letter.parts) != 1:
                    raise Refused("header", "no item counts")
                tallies.append(unpack_tally(run, node, periods, self._terms.items, *letter.parts[0]))
            except Refused as refusal:
                self._refuse(node, refusal)
        if not tallies:
            raise FedpaError("no node sent item counts that can be true", "look into the nodes' logs")
        found = pack_tally(run, EVERYBODY, functools.reduce(operator.add, tallies))
        self._save_tally(found)
        return found

    def _save_tally(self, found: Message) -> None:
        save_message(self._terms.room / TALLY, found)

    def _saved_tally(self) -> Message | None:
        """What `_counted` noted before the run was stopped."""
        path = self._terms.room / TALLY
        if not path.exists():
            return None
        try:
            return load_message(path)
        except ArtifactError as error:
            raise ArtifactError(error.message, "start the run anew with overwrite=true") from error
