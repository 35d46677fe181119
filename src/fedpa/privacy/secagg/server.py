"""The server's side of a secure sum: collects, forwards what it cannot read, and unmasks the sum alone."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

from fedpa.privacy.secagg.keys import KeyPair, combine, commitment, mask_key
from fedpa.privacy.secagg.masks import add_masks
from fedpa.privacy.secagg.message import INPUT, KEYS, PHASES, SHARES, UNMASK, Found, Message
from fedpa.privacy.secagg.terms import AbortError, ProtocolError, Terms

__all__ = ["Exchange", "SecureServer", "secure_sum"]

_log = logging.getLogger(__name__)

Ints = npt.NDArray[np.int64]
Exchange = Callable[[str, dict[int, Message]], Iterable[tuple[int, Found]]]
"""Sends a phase's requests and gives the answers as they come, until all are there or time is up."""


def secure_sum(terms: Terms, exchange: Exchange) -> tuple[Ints, list[int]]:
    """Go through all phases of one attempt.

    Parameters
    ----------
    terms : Terms
    exchange : callable

    Returns
    -------
    sum : ndarray of int64, shape ``[length]``
        Modulo 2^64.
    stayed : list of int
        The nodes that it is over.

    Raises
    ------
    AbortError
        If too few nodes stayed; nothing was unmasked.
    """
    _log.warning("secure aggregation is experimental and has not been reviewed")
    server = SecureServer(terms)
    for phase in PHASES:
        for node, answer in exchange(phase, server.requests(phase)):
            try:
                server.take(node, answer)
            except ProtocolError as error:
                _log.warning("node %d is left out: %s", node, error.message)
    return server.total(), server.stayed


class SecureServer:
    """One attempt at a sum. For each of `PHASES`: send `requests`, `take` the answers that come, go to the next.

    Nodes that do not answer a phase are left out of the following ones. Drop-outs before the vector are left out of the
    sum, those after it are in; where too few remain, `requests` or `total` says so and nothing is unmasked.

    Parameters
    ----------
    terms : Terms

    Attributes
    ----------
    answered : dict of str to set of int
        By phase, who answered in time.
    """

    def __init__(self, terms: Terms) -> None:
        terms.check()
        self.terms = terms
        self.answered: dict[str, set[int]] = {phase: set() for phase in PHASES}
        self._public: dict[int, dict[str, bytes]] = {}
        self._sealed: dict[int, dict[int, bytes]] = {}
        self._commitments: dict[int, bytes] = {}
        self._sum = np.zeros(terms.length, np.uint64)
        self._shown: dict[str, dict[int, list[bytes]]] = {"seed": {}, "key": {}}
        self._phase = ""

    @property
    def stayed(self) -> list[int]:
        """The nodes that the sum is over, ascending."""
        return sorted(self.answered[INPUT])

    def requests(self, phase: str) -> dict[int, Message]:
        """End the phase before and give the requests of the next, by node.

        Raises
        ------
        AbortError
            If too few answered the phase before.
        ProtocolError
            If it is not the next phase.
        """
        position = PHASES.index(phase)
        if self._phase != ("", *PHASES)[position]:
            raise ProtocolError(f"phase {phase!r} does not follow {self._phase or 'the start'!r}")
        asked = self._enough(self._phase) if self._phase else set(self.terms.roster)
        self._phase = phase
        return {node: self._request(phase, node, asked) for node in sorted(asked)}

    def take(self, node: int, answer: Found) -> None:
        """Take a node's answer to the phase's request.

        Raises
        ------
        ProtocolError
            If it is late, repeated, of a node that was not asked, or not what was asked for; it is then left out.
        """
        phase = self._phase
        message = Message.read(answer, phase, self.terms.session)
        before = self.answered[PHASES[PHASES.index(phase) - 1]] if phase != KEYS else set(self.terms.roster)
        if node not in before:
            raise ProtocolError(f"node {node} was not asked")
        if node in self.answered[phase]:
            raise ProtocolError(f"node {node} has answered phase {phase!r} already")
        {KEYS: self._take_keys, SHARES: self._take_shares, INPUT: self._take_vector, UNMASK: self._take_unmask}[phase](
            node, message
        )
        self.answered[phase].add(node)

    def total(self) -> Ints:
        """The sum over those who stayed, modulo 2^64 and read as signed integers [length].

        Raises
        ------
        AbortError
            If too few answered, or what they showed does not give the masks.
        """
        if self._phase != UNMASK:
            raise ProtocolError("the sum is not unmasked yet")
        self._enough(UNMASK)
        terms, stayed = self.terms, self.answered[INPUT]
        masks: list[tuple[bytes, int]] = []
        for node in stayed:
            seed = self._recover("seed", node)
            masks.append((mask_key(seed, terms, node, node), -1))
        for node in self.answered[SHARES] - stayed:
            near = terms.holders(node) & stayed
            if near:
                pair = KeyPair.of(self._recover("key", node))
                for other in near:
                    agreed = pair.agree(self._public[other]["mask"])
                    # The other one added it if its number is the lower one.
                    masks.append((mask_key(agreed, terms, node, other), -1 if other < node else 1))
        self._phase = "done"
        add_masks(self._sum, masks)
        return self._sum.view(np.int64)

    def _request(self, phase: str, node: int, asked: set[int]) -> Message:
        near = self.terms.holders(node) & asked
        message = Message.new(self.terms.session, phase)
        if phase == KEYS:
            message.header["terms"] = self.terms.to_json()
        elif phase == SHARES:
            for kind in sorted({kind for other in near for kind in self._public[other]}):
                message.put(kind, {other: self._public[other][kind] for other in near if kind in self._public[other]})
        elif phase == INPUT:
            message.put("sealed", {other: self._sealed[other][node] for other in near if other != node})
        else:
            message.header["stayed"] = self.stayed
        return message

    def _take_keys(self, node: int, message: Message) -> None:
        found = {kind: message.bytes_of(kind) for kind in ("mask", "share")}
        for kind in ("identity", "signature"):
            if kind in message.arrays:
                found[kind] = message.bytes_of(kind)
        self._public[node] = found

    def _take_shares(self, node: int, message: Message) -> None:
        near = (self.terms.holders(node) & self.answered[KEYS]) - {node}
        sealed = message.get("sealed", near)
        if sealed.keys() != near:
            raise ProtocolError(f"node {node} did not share with everyone")
        self._commitments[node] = message.bytes_of("commitment")
        self._sealed[node] = sealed

    def _take_vector(self, node: int, message: Message) -> None:
        vector = message.arrays.get("vector")
        if not isinstance(vector, np.ndarray) or vector.dtype != np.uint64 or vector.shape != (self.terms.length,):
            raise ProtocolError(f"node {node} sent no vector of {self.terms.length} 64-bit integers")
        self._sum += vector

    def _take_unmask(self, node: int, message: Message) -> None:
        near = self.terms.holders(node) & self.answered[SHARES]
        stayed = self.answered[INPUT]
        found = {"seed": message.get("seed", near & stayed), "key": message.get("key", near - stayed)}
        if found["seed"].keys() != near & stayed or found["key"].keys() != near - stayed:
            raise ProtocolError(f"node {node} did not show a share of everyone")
        for kind, shares in found.items():
            for owner, share in shares.items():
                self._shown[kind].setdefault(owner, []).append(share)

    def _enough(self, phase: str) -> set[int]:
        """Those who answered a phase, if they are enough, in all and near each one."""
        terms, answered = self.terms, self.answered[phase]
        concerned = self.answered[INPUT] if phase == UNMASK else answered
        thin = [node for node in concerned if len(terms.holders(node) & answered) < terms.threshold]
        least = terms.threshold if phase == UNMASK else terms.minimum
        if len(answered) < least or thin:
            near = f" and {terms.threshold} near each (too few near {thin[:5]})" if len(answered) >= least else ""
            raise AbortError(
                f"{len(answered)} of {len(terms.roster)} nodes answered phase {phase!r}, "
                f"expected at least {least}{near}; nothing was unmasked",
                "see the logs of the nodes that are missing, and try again when they are back",
            )
        return answered

    def _recover(self, kind: str, node: int) -> bytes:
        """A secret of a node, put together from shares and checked against what the node published of it.

        With more shares than it takes, another choice is tried where one of them is wrong.
        """
        shares, least = self._shown[kind].get(node, []), self.terms.threshold
        if len(shares) < least:
            raise AbortError(f"{len(shares)} shares of the {kind} of node {node}, it takes {least}")
        for first in range(len(shares) if len(shares) > least else 1):
            chosen = [shares[(first + step) % len(shares)] for step in range(least)]
            try:
                secret = combine(chosen)
                if kind == "seed":
                    right = commitment(secret, self.terms, node) == self._commitments[node]
                else:
                    right = KeyPair.of(secret).public == self._public[node]["mask"]
            except ProtocolError:
                continue
            if right:
                return secret
        raise AbortError(f"the shares of the {kind} of node {node} were altered; nothing was unmasked")
