"""Nodes of secure sums in this process, and a server that logs all that passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedpa.privacy.secagg.identity import Identity, Peers
from fedpa.privacy.secagg.message import INPUT, KEYS, PHASES, SHARES, Message
from fedpa.privacy.secagg.node import SecureNode
from fedpa.privacy.secagg.server import secure_sum
from fedpa.privacy.secagg.slots import Slots
from fedpa.privacy.secagg.terms import Terms

Ints = npt.NDArray[np.int64]
Tamper = Callable[[str, int, Message], Message]


def untouched(_: str, __: int, message: Message) -> Message:
    return message


class Nodes:
    """Nodes with a folder and a vector each; every message meets a new process's state, read from the disk.

    Parameters
    ----------
    folder : Path
    vectors : mapping of int to ndarray
    drop : mapping of str to set of int
        By phase, who does not answer it, nor any later one.
    requests, answers : callable
        What a server, or whoever is on the way, makes of them.
    """

    def __init__(
        self,
        folder: Path,
        vectors: Mapping[int, Ints],
        drop: Mapping[str, set[int]] | None = None,
        requests: Tamper = untouched,
        answers: Tamper = untouched,
        identities: Mapping[int, Identity] | None = None,
        peers: Peers | None = None,
    ) -> None:
        self.folder, self.vectors, self.drop = folder, dict(vectors), drop or {}
        self.tampered, self.altered = requests, answers
        self.identities, self.peers = identities or {}, peers
        self.gone: set[int] = set()
        self.log: list[tuple[str, int, str, Message]] = []
        self.errors: list[tuple[str, int, Exception]] = []

    def node(self, number: int) -> SecureNode:
        return SecureNode(
            self.folder / f"node-{number}", number, identity=self.identities.get(number), peers=self.peers
        )

    def answer(self, number: int, phase: str, request: Message) -> Message:
        node = self.node(number)
        if phase == KEYS:
            return node.keys(request)
        if phase == SHARES:
            return node.shares(request)
        return node.masked(request, self.vectors[number]) if phase == INPUT else node.unmask(request)

    def exchange(self, phase: str, requests: Mapping[int, Message]) -> Iterator[tuple[int, Message]]:
        self.gone |= self.drop.get(phase, set())
        for number, sent in requests.items():
            self.log.append((phase, number, "request", sent))
            if number in self.gone:
                continue
            try:
                answer = self.answer(number, phase, self.tampered(phase, number, sent))
            except Exception as error:
                self.errors.append((phase, number, error))
                continue
            answer = self.altered(phase, number, answer)
            self.log.append((phase, number, "answer", answer))
            yield number, answer

    def sum(self, **terms: Any) -> tuple[Ints, list[int]]:
        return secure_sum(terms_for(self.vectors, **terms), self.exchange)

    def said(
        self, phase: str, kind: str = "answer", log: list[tuple[str, int, str, Message]] | None = None
    ) -> dict[int, Message]:
        found = self.log if log is None else log
        return {number: message for when, number, of, message in found if (when, of) == (phase, kind)}


def terms_for(vectors: Mapping[int, Ints], **terms: Any) -> Terms:
    length = len(next(iter(vectors.values())))
    form = Slots({"vector": (length,)}).digest
    return Terms.new(
        vectors, **{"run": "5eed", "purpose": "round", "number": 1, "length": length, "form": form, **terms}
    )


def drawn(nodes: int, length: int, seed: int = 0) -> dict[int, Ints]:
    """Vectors over the whole range of 64-bit integers."""
    rng = np.random.default_rng(seed)
    ids = rng.choice(2**40, nodes, replace=False).tolist()
    return {node: rng.integers(-(2**63), 2**63, length, np.int64) for node in ids}


def added(vectors: Mapping[int, Ints], nodes: list[int]) -> Ints:
    """What a server that saw all would compute, modulo 2^64."""
    total = [sum(int(vectors[node][place]) for node in nodes) for place in range(len(vectors[nodes[0]]))]
    return np.array([(value + 2**63) % 2**64 - 2**63 for value in total], np.int64)


def dropped_before(drop: Mapping[str, set[int]], phase: str) -> set[int]:
    return set().union(*(drop.get(one, set()) for one in PHASES[: PHASES.index(phase) + 1]))
