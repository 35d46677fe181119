"""Messages between the server and nodes of a secure sum: JSON values beside bytes and arrays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fedpa.privacy.secagg.terms import VERSION, ProtocolError

__all__ = ["INPUT", "KEYS", "PHASES", "SHARES", "UNMASK", "Found", "Message"]

Found = tuple[Mapping[str, Any], Mapping[str, Any]]
"""Header and arrays as they came."""

KEYS, SHARES, INPUT, UNMASK = PHASES = ("keys", "shares", "input", "unmask")
"""In turn: public keys; shares of secrets; the masked vector; shares that take the masks off the sum."""


class Message(NamedTuple):
    """A request or its answer.

    Attributes
    ----------
    header : dict
        JSON values; always ``version``, ``session`` and ``phase``.
    arrays : dict
        Bytes or arrays by name; ``kind/node`` where each node has one.
    """

    header: dict[str, Any]
    arrays: dict[str, bytes | npt.NDArray[np.uint64]]

    @classmethod
    def new(cls, session: str, phase: str, **header: Any) -> Message:
        """A message without arrays."""
        return cls({"version": VERSION, "session": session, "phase": phase, **header}, {})

    @classmethod
    def read(
        cls, found: tuple[Mapping[str, Any], Mapping[str, Any]], phase: str, session: str | None = None
    ) -> Message:
        """Check what came.

        Raises
        ------
        ProtocolError
            If it is of another version, phase or session.
        """
        header, arrays = found
        expected = {"version": VERSION, "phase": phase} | ({} if session is None else {"session": session})
        for name, value in expected.items():
            if header.get(name) != value:
                raise ProtocolError(f"{name} {header.get(name)!r} in a message, expected {value!r}")
        return cls(dict(header), dict(arrays))

    def put(self, kind: str, each: Mapping[int, bytes]) -> None:
        """Add bytes of several nodes."""
        self.arrays.update({f"{kind}/{node}": content for node, content in each.items()})

    def bytes_of(self, name: str) -> bytes:
        """Bytes by name.

        Raises
        ------
        ProtocolError
            If they are missing or something else.
        """
        found = self.arrays.get(name)
        if not isinstance(found, bytes):
            raise ProtocolError(f"{name!r} is missing from a message")
        return found

    def get(self, kind: str, allowed: Iterable[int]) -> dict[int, bytes]:
        """The bytes of each node.

        Raises
        ------
        ProtocolError
            If one is of a node that is not allowed.
        """
        found, allowed = {}, frozenset(allowed)
        for name in self.arrays:
            of_kind, _, text = name.partition("/")
            if of_kind == kind:
                if not (text.isascii() and text.isdigit()) or int(text) not in allowed or text != str(int(text)):
                    raise ProtocolError(f"{name!r} is of no node that belongs here")
                found[int(text)] = self.bytes_of(name)
        return found
