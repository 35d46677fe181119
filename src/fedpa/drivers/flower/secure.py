"""Nodes on Flower whose uploads the server sees as sums alone.

Each round is one secure sum (`fedpa.privacy.secagg`) over uploads and scores together, of as many letters per node as
the protocol has phases; item counts before the first round are another. A sum is noted before it is used, so that a
server that was stopped does not ask for it again.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from fedpa.artifacts import to_json
from fedpa.drivers.flower.driver import FlowerDriver, Terms
from fedpa.drivers.flower.post import Post
from fedpa.drivers.flower.secure_work import ROUND, SECURE, TALLY, of_part, to_part
from fedpa.durable import replace
from fedpa.evaluation.sums import ClickSums
from fedpa.federation.form import Message as Part
from fedpa.federation.form import Refused
from fedpa.federation.kept import EVERYBODY
from fedpa.federation.order import Base, Order, Report, Sums
from fedpa.federation.upload import Upload
from fedpa.federation.wire import pack_order, pack_tally
from fedpa.privacy.secagg.contents import Limits, RoundVector, TallyVector
from fedpa.privacy.secagg.message import INPUT, Message
from fedpa.privacy.secagg.server import secure_sum
from fedpa.privacy.secagg.terms import FEWEST_NODES, AbortError
from fedpa.privacy.secagg.terms import Terms as SumTerms

__all__ = ["SecureDriver"]

_log = logging.getLogger(__name__)
_ATTEMPTS = 3
_SUM = "secure-sum.safetensors"
Ints = npt.NDArray[np.int64]
Extra = Callable[[int], tuple[Part, ...]]


class SecureDriver(FlowerDriver):
    """Nodes that are SuperNodes and give masked vectors.

    Parameters
    ----------
    post : Post
    terms : Terms
    limits : Limits
        How large sums may become.
    threshold : int, optional
        How many nodes must stay; see `fedpa.privacy.secagg.terms.Terms`.

    Raises
    ------
    ConfigError
        If the server is to see more than sums, or the largest sum does not fit 64 bits.
    """

    def __init__(self, post: Post, terms: Terms, limits: Limits, *, threshold: int | None = None) -> None:
        super().__init__(post, terms)
        self._limits, self._threshold = limits, threshold
        layout, settings = terms.layout, terms.settings
        self._contents = {train: RoundVector(layout, settings, limits, train=train) for train in (True, False)}
        self.users = {}

    def evaluate(self, order: Order, bases: Mapping[int, Base]) -> dict[int, Sums]:
        """As `FlowerDriver.evaluate`; the sum of all stands at the first node, the others have nothing.

        Raises
        ------
        AbortError
            If several attempts in turn lost too many nodes; nothing was unmasked.
        """
        total, stayed = self._noted(order) or self._attempted(lambda: self._summed(order, bases))
        upload, sums, users = self._contents[order.train].unpack(total, len(stayed))
        self._note(order, total, stayed)
        first, *others = stayed
        if users > sum(self.users.values()):
            self.users.clear()
            self.users[first] = users
        empty = Upload.empty(self._terms.layout, self._terms.settings)
        uploads = {first: upload, **dict.fromkeys(others, empty)} if upload is not None else {}
        reports = {node: Report(order.run, order.number, node, one) for node, one in uploads.items() if one is not None}
        self._reports = order.number, reports
        nothing = {split: ClickSums.zero() for split in sums}
        return {first: sums, **dict.fromkeys(others, nothing)}

    def _attempted(self, attempt: Callable[[], tuple[Ints, list[int]]]) -> tuple[Ints, list[int]]:
        """A sum, tried again with keys drawn anew when too many nodes dropped out."""
        for left in reversed(range(_ATTEMPTS)):
            try:
                return attempt()
            except AbortError as error:
                self.counts["aborted"] += 1
                _log.error("%s", error)
                if not left:
                    raise
                self._members.settle()
        raise AssertionError

    def _summed(self, order: Order, bases: Mapping[int, Base]) -> tuple[Ints, list[int]]:
        ready = [node for node in bases if node in self._members.ready]
        nodes = ready if len(ready) >= FEWEST_NODES else list(bases)
        content = self._contents[order.train]

        def extra(node: int) -> tuple[Part, ...]:
            return (pack_order(self._terms.layout, order, bases[node]),)

        return self._sum(nodes, ROUND, order.number, content.slots.length, content.slots.digest, extra, {})

    def _sum(
        self, nodes: list[int], purpose: str, number: int, length: int, form: str, extra: Extra, head: dict[str, Any]
    ) -> tuple[Ints, list[int]]:
        terms = SumTerms.new(
            nodes,
            run=self._terms.run,
            purpose=purpose,
            number=number,
            length=length,
            form=form,
            threshold=self._threshold,
        )
        told = {**head, "round": number, "change": float(self._limits.change), "most_users": self._limits.users}

        def exchange(phase: str, requests: dict[int, Message]) -> Iterator[tuple[int, Message]]:
            parts = {n: (to_part(request), *(extra(n) if phase == INPUT else ())) for n, request in requests.items()}
            for node, letter in self._ask(SECURE, parts, told).items():
                try:
                    yield node, of_part(letter.parts)
                except Refused as refusal:
                    self._refuse(node, refusal)

        return secure_sum(terms, exchange)

    def _counted(self) -> Part:
        """The sum of the item counts of those who are there, noted for those who come later."""
        content = TallyVector(self._terms.settings.item_counts, self._terms.items)
        slots = content.slots

        def attempt() -> tuple[Ints, list[int]]:
            nodes = sorted(self._members.muster("prepare"))
            head = {"config": self._terms.config}
            return self._sum(nodes, TALLY, 0, slots.length, slots.digest, lambda _: (), head)

        total, stayed = self._attempted(attempt)
        found = pack_tally(self._terms.run, EVERYBODY, content.unpack(total, len(stayed)))
        self._save_tally(found)
        return found

    def _noted(self, order: Order) -> tuple[Ints, list[int]] | None:
        """The sum for an order, if it was found before the server was stopped."""
        try:
            with safetensors.safe_open(self._terms.room / _SUM, "numpy") as file:
                about = json.loads((file.metadata() or {})["about"])
                total = file.get_tensor("sum")
        except FileNotFoundError:
            return None
        except (OSError, KeyError, ValueError, safetensors.SafetensorError) as error:
            _log.warning("%s: cannot be read (%s); it is left out", self._terms.room / _SUM, error)
            return None
        return (total, about["stayed"]) if about["order"] == _digest(order) else None

    def _note(self, order: Order, total: Ints, stayed: list[int]) -> None:
        about = {"order": _digest(order), "stayed": stayed}
        data = safetensors.numpy.save({"sum": total}, {"about": to_json(about)})
        replace(self._terms.room / _SUM, data)


def _digest(order: Order) -> str:
    """SHA-256 of an order."""
    found = hashlib.sha256(f"{order.run} {order.number} {order.train}".encode())
    for rows in order.state:
        found.update(rows.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()
