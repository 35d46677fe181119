"""How far a run had come by what a crash left of it, without going on with it.

What is done here is what `Coordinator._resume` does, from the same `Generations.about`; each generation is read once,
however many states of the disk hold it. That the two agree, a test sees on samples.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crash.disk import Disk, Tree
from crash.trace import ANEW, FINISHED, Reported, Step
from fedpa.errors import ArtifactError
from fedpa.federation.coordinator import server_generations
from fedpa.federation.device import node_generations

About = dict[str, Any]
Key = tuple[str, int, frozenset[tuple[str, bytes]]]


class LossError(Exception):
    """A crash that loses what must not be lost."""


@dataclass(frozen=True)
class State:
    """What a crash leaves.

    Attributes
    ----------
    tree : dict
    place : int
        Of the last step that was done.
    reported : int
        The last round that had been reported as completed.
    """

    tree: Tree
    place: int
    reported: int


def states(
    steps: Iterable[Step | Reported],
    top: Path,
    *,
    skip: Collection[int] = (),
    begin: int = 0,
    depth: int = 0,
    old: Tree | None = None,
) -> Iterator[State]:
    """Every state that a crash after any of the steps may leave; without some syncs, only those that may be new.

    Parameters
    ----------
    steps : iterable
    top : Path
        The folder that they are below.
    skip : collection of int
        Places of syncs that are left out.
    begin : int
        The first step after which the machine may crash.
    depth : int
        See `Disk.after_crash`.
    old : dict, optional
        What was there before.
    """
    disk, reported = Disk(str(top), old), ANEW
    first = max(begin, min(skip, default=-1) + 1)
    for place, step in enumerate(steps):
        if isinstance(step, Reported):
            reported = step.number
        elif place not in skip:
            disk.do(step.call)
        if place < first or (isinstance(step, Step) and not step.call.changes):
            continue
        for tree in disk.after_crash(depth):
            yield State(tree, place, reported)


class Judge:
    """Knows how the run went.

    Parameters
    ----------
    steps : sequence
        Of the run that nothing stopped.
    top, run : Path
        The folder that they are below, and the run.
    old : dict, optional
        What was there before.
    """

    def __init__(self, steps: Sequence[Step | Reported], top: Path, run: Path, old: Tree | None = None) -> None:
        *self._above, self._name = run.relative_to(top).parts
        self._read: dict[Key, About | None] = {}
        self._published: set[Key] = set()
        disk = Disk(str(top), old)
        for step in steps:
            if isinstance(step, Step):
                disk.do(step.call)
                if step.call.kind == "move":
                    self._published.update(self._generations(disk.now()))
        self.final: Tree = self._here(disk.now())[self._name]
        self._nodes = sorted(name for name in self.final["checkpoints"] if name != "server")
        self._best_after: dict[int, int] = {}
        for key in self._published:
            if key[0] == "server" and (about := self._about(key)) is not None:
                self._best_after[key[1] - 1] = about["best_round"]
        self._best_after[max(self._best_after) + 1] = json.loads(self.final["summary.json"])["best_round"]

    def came_to(self, tree: Tree) -> int:
        """The round from which a run would go on; `ANEW` or `FINISHED`.

        Raises
        ------
        LossError
            If something is damaged that would be taken for whole, or that nothing gets past.
        """
        here = self._here(tree)
        run, room = here.get(self._name), here.get(f"{self._name}.unfinished")
        if run is not None and (room is None or run.get("summary.json") == self.final["summary.json"]):
            self._check_final(run)
            return FINISHED
        if room is None or "config.yaml" not in room:
            return ANEW
        if room["config.yaml"] != self.final["config.yaml"]:
            raise LossError("config.yaml is damaged")
        return self._round(room.get("checkpoints", {}))

    def check(self, state: State) -> int:
        """What `came_to` gives, if that is no less than what was reported.

        Raises
        ------
        LossError
        """
        number = self.came_to(state.tree)
        if number < state.reported and state.reported > 0:
            raise LossError(f"round {state.reported} was reported, but the run would go on from {number}")
        return number

    def _check_final(self, run: Tree) -> None:
        for name, content in self.final.items():
            if name != "checkpoints" and run.get(name) != content:
                raise LossError(f"{name} of the finished run is damaged")
        for role, folder in self.final["checkpoints"].items():
            for number, generation in folder.items():
                if run.get("checkpoints", {}).get(role, {}).get(number) != generation:
                    raise LossError(f"{role}/{number} of the finished run is damaged")

    def _round(self, folders: Tree) -> int:
        server = self._good("server", folders)
        nodes = {name: self._good(name, folders) for name in self._nodes}

        def whole(accepted: dict[str, int]) -> bool:
            return all(accepted.get(name.removeprefix("node-"), 0) in nodes[name] for name in self._nodes)

        for number in sorted(server, reverse=True):
            about = server[number]
            if not whole(about["accepted"][str(number)]):
                continue
            best = about["best_round"]
            if self._best_after[number] != number and not (best in server and whole(about["accepted"][str(best)])):
                raise LossError(f"round {number} is whole, but its best one, {best}, is not")
            return number
        if any(name.isdecimal() for name in folders.get("server", {})):
            raise LossError("there are rounds, but none is whole")
        return ANEW

    def _good(self, role: str, folders: Tree) -> dict[int, About]:
        found = {}
        for name, folder in folders.get(role, {}).items():
            if name.isdecimal():
                key = (role, int(name), frozenset(folder.items()))
                about = self._about(key)
                if about is not None:
                    if key not in self._published:
                        raise LossError(f"{role}/{name} is damaged and taken for whole")
                    found[int(name)] = about
        return found

    def _about(self, key: Key) -> About | None:
        """What `Generations.about` says of a generation; None if it refuses it."""
        if key not in self._read:
            role, number, files = key
            with tempfile.TemporaryDirectory(prefix="fedpa-") as name:
                room = Path(name)
                server = role == "server"
                place = server_generations(room, sync=False) if server else node_generations(room / role, sync=False)
                place.path(number).mkdir()
                for file, content in files:
                    (place.path(number) / file).write_bytes(content)
                try:
                    self._read[key] = place.about(number)
                except ArtifactError:
                    self._read[key] = None
        return self._read[key]

    def _here(self, tree: Tree) -> Tree:
        for name in self._above:
            tree = tree.get(name, {})
        return tree

    def _generations(self, tree: Tree) -> Iterator[Key]:
        here = self._here(tree)
        for run in (here.get(self._name, {}), here.get(f"{self._name}.unfinished", {})):
            for role, folder in run.get("checkpoints", {}).items():
                for name, files in folder.items():
                    if name.isdecimal():
                        yield role, int(name), frozenset(files.items())
