"""The nodes that a server knows, by the keys that Flower has authenticated, and the number of its letters."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any

from fedpa.artifacts import to_json
from fedpa.drivers.flower.post import Seen
from fedpa.durable import replace
from fedpa.errors import ArtifactError

__all__ = ["Roll"]

_NODES = "nodes.json"


class Roll:
    """Which SuperNode is which node.

    A node keeps its number for as long as it keeps its key, whatever happens to the SuperLink or its database.

    Parameters
    ----------
    room : Path
        Folder of the unfinished run; the roll is a file in it.

    Attributes
    ----------
    session : int
        Number of this start of the server; larger than those before.
    users : dict of int to int
        How many users each node has said that it has. The first word counts.
    """

    def __init__(self, room: Path) -> None:
        self._path = room / _NODES
        self._nodes: dict[str, dict[str, Any]] = {}
        before = 0
        if self._path.exists():
            try:
                found = json.loads(self._path.read_text(encoding="utf-8"))
                self._nodes, before = found["nodes"], found["session"]
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise ArtifactError(f"{self._path}: cannot be read ({error})", "start the run anew") from error
        self.session = max(before + 1, time.time_ns() // 1_000_000)
        self._serial = 0
        self._by_key: dict[str, int] = {key: node["number"] for key, node in self._nodes.items()}
        self.users = {node["number"]: node["users"] for node in self._nodes.values() if node["users"] is not None}
        self._save()

    def number(self, seen: Seen) -> int:
        """The node's number; a new one if it has none yet."""
        key = hashlib.sha256(seen.key or str(seen.flower).encode()).hexdigest()
        if key not in self._by_key:
            self._by_key[key] = len(self._by_key)
            self._nodes[key] = {"number": self._by_key[key], "name": seen.name, "users": None}
            self._save()
        return self._by_key[key]

    def note(self, number: int, users: int) -> None:
        """Note how many users a node says that it has."""
        for node in self._nodes.values():
            if node["number"] == number and node["users"] is None:
                node["users"] = self.users[number] = users
                self._save()

    def serial(self) -> int:
        """The number of the next letter."""
        self._serial += 1
        return self._serial

    def _save(self) -> None:
        replace(self._path, to_json({"session": self.session, "nodes": self._nodes}).encode())
