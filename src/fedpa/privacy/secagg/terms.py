"""What a secure sum is over: who takes part, who masks with whom, and how many must stay."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from fedpa.errors import ConfigError, FedpaError

__all__ = [
    "FEWEST_NODES",
    "FULL_GRAPH",
    "VERSION",
    "AbortError",
    "ContentError",
    "ProtocolError",
    "Terms",
    "default_threshold",
]

VERSION = 1
"""Of the protocol's messages; another is refused."""

FEWEST_NODES = 5
"""With two nodes the other's sum follows by subtraction; with few, it nearly does."""

FULL_GRAPH = 100
"""Up to so many nodes each masks with every other one; above, with so many neighbours."""

_FEWEST_HOLDERS = 3
_LARGEST_ID = 2**64


class ProtocolError(FedpaError):
    """A message or content that breaks the protocol; whoever found it does not go on with the request."""

    def __init__(self, message: str, fix: str | None = None) -> None:
        super().__init__(f"secure aggregation: {message}", fix)


class AbortError(ProtocolError):
    """A secure sum that too few nodes stayed in; nothing was unmasked."""


class ContentError(ProtocolError):
    """Content that is not to be masked; what it says of a node's users stays on the node."""


def default_threshold(holders: int) -> int:
    """More than two thirds of those who hold shares of a secret.

    A server that lied to some nodes about who stayed would need `threshold` shares of both secrets of a node from
    different holders; above two thirds this takes a third of the holders as accomplices (Bonawitz et al., 2017,
    section 6.2).
    """
    return 2 * holders // 3 + 1


@dataclass(frozen=True)
class Terms:
    """What all messages of a secure sum refer to; every node checks it, signs it and seals shares with its digest.

    Attributes
    ----------
    session : str
        Drawn anew for each attempt, hexadecimal.
    run, purpose : str
        Of the run, and what is summed, for instance ``"round"``.
    number : int
        Of the round.
    roster : tuple of int
        Nodes that are asked, ascending.
    threshold : int
        How many holders of shares it takes to learn a secret.
    degree : int
        Neighbours of each node in the graph of masks (Bell et al., 2020); one less than nodes: all of them.
    length : int
        Of the vector, in 64-bit integers.
    form : str
        Digest of the names and shapes in the vector; see `vector.Form`.
    """

    session: str
    run: str
    purpose: str
    number: int
    roster: tuple[int, ...]
    threshold: int
    degree: int
    length: int
    form: str

    @classmethod
    def new(
        cls,
        nodes: Iterable[int],
        *,
        run: str,
        purpose: str,
        number: int,
        length: int,
        form: str,
        threshold: int | None = None,
        degree: int | None = None,
    ) -> Terms:
        """Terms of a new attempt.

        Raises
        ------
        ConfigError
            As `check`.
        """
        roster = tuple(sorted(nodes))
        full = max(len(roster) - 1, 0)
        degree = (full if full <= FULL_GRAPH else FULL_GRAPH) if degree is None else min(degree, full)
        threshold = default_threshold(degree + 1) if threshold is None else threshold
        terms = cls(secrets.token_hex(16), run, purpose, number, roster, threshold, degree, length, form)
        terms.check()
        return terms

    def check(self) -> None:
        """Refuse terms under which single nodes could be learned.

        Raises
        ------
        ConfigError
            If there are fewer than `FEWEST_NODES`, the threshold is below a majority or above those who hold shares, or
            the graph of masks could fall apart.
        """
        nodes, holders = len(self.roster), self.degree + 1
        if nodes < FEWEST_NODES:
            raise ConfigError(
                f"secure aggregation over {nodes} nodes: expected at least {FEWEST_NODES}, "
                "since with few nodes a sum says too much of each",
                f"start {FEWEST_NODES} or more nodes, or turn secure aggregation off",
            )
        if list(self.roster) != sorted(set(self.roster)) or not 0 <= self.roster[0] <= self.roster[-1] < _LARGEST_ID:
            raise ConfigError("secure aggregation: the nodes' numbers must differ, ascend and fit 64 bits")
        if not 0 < self.degree < nodes or (self.degree < nodes - 1 and self.degree % 2):
            raise ConfigError(
                f"secure aggregation: {self.degree} neighbours among {nodes} nodes; expected an even number"
            )
        # Each node has neighbours left on both sides of the ring, so that the graph stays in one piece.
        least = max(_FEWEST_HOLDERS, holders // 2 + 1 + (self.degree < nodes - 1))
        if not least <= self.threshold <= holders:
            raise ConfigError(
                f"secure aggregation: threshold {self.threshold} of {holders}; expected {least} to {holders}, "
                "a majority of those who hold shares of a secret",
                f"leave it out (more than two thirds: {default_threshold(holders)}) or set it within that range",
            )
        if self.length < 1 or self.number < 0:
            raise ConfigError(f"secure aggregation: a vector of {self.length} in round {self.number}")

    @property
    def minimum(self) -> int:
        """Fewest nodes that a sum may be over."""
        return max(self.threshold, len(self.roster) // 2 + 1)

    @cached_property
    def _ring(self) -> list[int]:
        """The nodes in an order that the session draws."""
        return sorted(self.roster, key=lambda node: hashlib.sha256(f"{self.session}:{node}".encode()).digest())

    @cached_property
    def _place(self) -> Mapping[int, int]:
        return {node: place for place, node in enumerate(self._ring)}

    def holders(self, node: int) -> frozenset[int]:
        """The node and its neighbours: who masks with it and holds shares of its secrets."""
        nodes = len(self.roster)
        if self.degree == nodes - 1:
            return frozenset(self.roster)
        half, place = self.degree // 2, self._place[node]
        return frozenset(self._ring[(place + step) % nodes] for step in range(-half, half + 1))

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of all of it [32 bytes]."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).digest()

    def to_json(self) -> dict[str, Any]:
        """As a message carries it."""
        return {**asdict(self), "roster": list(self.roster), "version": VERSION}

    @classmethod
    def from_json(cls, found: object) -> Terms:
        """Read and check what a message carries.

        Raises
        ------
        ProtocolError
            If it is not terms of this version.
        ConfigError
            As `check`.
        """
        kinds = {name: int if name in _NUMBERS else str for name in cls.__dataclass_fields__ if name != "roster"}
        if not isinstance(found, Mapping) or found.get("version") != VERSION:
            version = found.get("version") if isinstance(found, Mapping) else None
            raise ProtocolError(
                f"protocol version {version!r}, expected {VERSION}",
                "install the same fedpa everywhere",
            )
        roster = found.get("roster")
        if (
            found.keys() != kinds.keys() | {"roster", "version"}
            or any(type(found[name]) is not kind for name, kind in kinds.items())
            or not isinstance(roster, list)
            or any(type(node) is not int for node in roster)
        ):
            raise ProtocolError("the terms have other fields than expected")
        terms = cls(**{name: found[name] for name in kinds}, roster=tuple(roster))
        terms.check()
        return terms


_NUMBERS = {"number", "threshold", "degree", "length"}
