"""A disk that forgets what was not synced, as far as POSIX lets it.

A synced file keeps its bytes, but not its name; a synced folder keeps the names in it. What was not synced may be lost
or not, each change of names by itself, but for those of one name, which stay in order; and a file may hold what it
held before, nothing, zeros, noise, half of the new bytes, or all. A move between two folders reaches both or neither.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crash.calls import Call

Tree = dict[str, Any]
"""By name the bytes of a file or the tree of a folder."""


@dataclass(eq=False)
class File:
    """Bytes, as the system has cached them and as the disk has them."""

    cached: bytes = b""
    kept: bytes = b""

    @property
    def loose(self) -> bool:
        """Whether a crash may change it."""
        return self.cached != self.kept


@dataclass(eq=False)
class Folder:
    """Names, as the disk has them; `Disk.pending` has what changes them."""

    kept: dict[str, File | Folder] = field(default_factory=dict)


Node = File | Folder
Names = dict[Folder, dict[str, Node]]


@dataclass(eq=False)
class Change:
    """Of names in one folder or two: a node, or None for no more."""

    parts: tuple[tuple[Folder, str, Node | None], ...]

    @property
    def touched(self) -> set[tuple[int, str]]:
        """What it must stay in order with."""
        return {(id(folder), name) for folder, name, _ in self.parts}


def _folder(tree: Tree) -> Folder:
    return Folder(
        {
            name: _folder(content) if isinstance(content, dict) else File(content, content)
            for name, content in tree.items()
        }
    )


NOISE = hashlib.sha256(b"noise").digest()
DAMAGES = ("all", "old", "zeros", "noise", "half")
"""What an unsynced file may hold after a crash."""


def damaged(file: File, damage: str) -> bytes:
    """What a file holds after a crash."""
    new = file.cached
    match damage:
        case "old":
            return file.kept
        case "zeros":
            return bytes(len(new))
        case "noise":
            return (NOISE * (len(new) // len(NOISE) + 1))[: len(new)]
        case "half":
            return new[: len(new) // 2]
    return new


class Disk:
    """What is below a folder that is there already.

    Parameters
    ----------
    top : str
        The folder.
    old : dict, optional
        What is in it, synced.
    """

    def __init__(self, top: str, old: Tree | None = None) -> None:
        self.top = top
        self.root = _folder(old or {})
        self.pending: list[Change] = []
        self._handles: dict[int, Node] = {}
        self._places: dict[int, int] = {}

    def do(self, call: Call) -> None:
        """Have a call, which succeeded, change it."""
        match call.kind:
            case "open":
                self._open(call)
            case "close":
                self._handles.pop(call.handle, None)
            case "write":
                self._write(call)
            case "size":
                file = self._file(call)
                file.cached = file.cached[: call.place].ljust(call.place, b"\0")
            case "sync":
                self._sync(self._handles[call.handle])
            case "mkdir":
                self._change((call.path, Folder()))
            case "rmdir" | "unlink":
                self._change((call.path, None))
            case "link":
                self._change((call.other, self.node(call.path)))
            case "move":
                self._change((call.path, None), (call.other, self.node(call.path)))

    def _open(self, call: Call) -> None:
        try:
            found = self.node(call.path)
        except KeyError:
            found = File()
            self._change((call.path, found))
        if isinstance(found, File) and call.flags & os.O_TRUNC:
            found.cached = b""
        self._handles[call.handle] = found
        self._places[call.handle] = -1 if call.flags & os.O_APPEND else 0

    def _write(self, call: Call) -> None:
        file, place = self._file(call), call.place
        if place < 0:
            place = self._places[call.handle] if self._places[call.handle] >= 0 else len(file.cached)
            if self._places[call.handle] >= 0:
                self._places[call.handle] = place + len(call.data)
        before = file.cached[:place].ljust(place, b"\0")
        file.cached = before + call.data + file.cached[place + len(call.data) :]

    def _file(self, call: Call) -> File:
        found = self._handles[call.handle]
        assert isinstance(found, File)
        return found

    def _change(self, *parts: tuple[str, Node | None]) -> None:
        found = []
        for path, node in parts:
            above, _, name = path.rpartition(os.sep)
            folder = self.node(above)
            assert isinstance(folder, Folder)
            found.append((folder, name, node))
        self.pending.append(Change(tuple(found)))

    def _sync(self, node: Node) -> None:
        if isinstance(node, File):
            node.kept = node.cached
            return
        done = self.closed({change for change in self.pending if any(part[0] is node for part in change.parts)})
        for change in self.pending:
            if change in done:
                for folder, name, found in change.parts:
                    folder.kept.pop(name, None)
                    if found is not None:
                        folder.kept[name] = found
        self.pending = [change for change in self.pending if change not in done]
        here = self._reached()
        self.pending = [change for change in self.pending if any(id(part[0]) in here for part in change.parts)]

    def _reached(self) -> set[int]:
        """Folders that are there, or may be after a crash."""
        found, left = set(), [self.root]
        while left:
            folder = left.pop()
            if id(folder) in found:
                continue
            found.add(id(folder))
            below = [*folder.kept.values()]
            below += [part[2] for change in self.pending for part in change.parts if part[0] is folder and part[2]]
            left += [node for node in below if isinstance(node, Folder)]
        return found

    def closed(self, changes: Collection[Change]) -> set[Change]:
        """Changes, with the earlier ones that they must not overtake."""
        found: set[Change] = set()
        touched: set[tuple[int, str]] = set()
        for change in reversed(self.pending):
            if change in changes or change.touched & touched:
                found.add(change)
                touched |= change.touched
        return found

    def without(self, change: Change) -> set[Change]:
        """All changes but one, and those that must not overtake it."""
        lost: set[Change] = set()
        touched: set[tuple[int, str]] = set()
        for each in self.pending:
            if each is change or each.touched & touched:
                lost.add(each)
                touched |= each.touched
        return {each for each in self.pending if each not in lost}

    def node(self, path: str) -> Node:
        """What has a name now.

        Raises
        ------
        KeyError
            If nothing has.
        """
        node: Node = self.root
        for name in Path(path).relative_to(self.top).parts:
            assert isinstance(node, Folder)
            node = self._now(node)[name]
        return node

    def _now(self, folder: Folder) -> dict[str, Node]:
        return self._names(self.pending).get(folder, folder.kept)

    def _names(self, changes: Sequence[Change]) -> Names:
        found: Names = {}
        for change in changes:
            for folder, name, node in change.parts:
                names = found.setdefault(folder, dict(folder.kept))
                names.pop(name, None)
                if node is not None:
                    names[name] = node
        return found

    def now(self) -> Tree:
        """What a process sees."""
        return self._tree(self.root, self._names(self.pending), {})

    def after_crash(self, depth: int = 0) -> Iterator[Tree]:
        """Every state that a crash at this moment may leave, of those that are cheap to enumerate.

        Of the changes of names that were not synced none, all, each alone, all but each, and every subset of the last
        `depth` with all or none of the others; with each, all files that were not synced damaged in one of the ways,
        and with all names also one file alone, or all but one.
        """
        subsets = [set(), set(self.pending)]
        subsets += [self.closed({change}) for change in self.pending]
        subsets += [self.without(change) for change in self.pending]
        last = self.pending[-depth:] if depth else []
        earlier = [set(), set(self.pending) - set(last)]
        for size in range(len(last) + 1):
            subsets += [
                self.closed({*some, *before}) for some in itertools.combinations(last, size) for before in earlier
            ]
        seen = set()
        for chosen in subsets:
            key = frozenset(map(id, chosen))
            if key in seen:
                continue
            seen.add(key)
            names = self._names([change for change in self.pending if change in chosen])
            loose = self._loose(self.root, names)
            if not loose:
                yield self._tree(self.root, names, {})
                continue
            for damage in DAMAGES:
                yield self._tree(self.root, names, dict.fromkeys(loose, damage))
            if len(loose) > 1 and len(chosen) == len(self.pending):
                for file, damage in itertools.product(loose, DAMAGES[1:]):
                    yield self._tree(self.root, names, {file: damage})
                    yield self._tree(self.root, names, {one: damage for one in loose if one is not file})

    def _loose(self, folder: Folder, names: Names) -> list[File]:
        found = []
        for node in names.get(folder, folder.kept).values():
            if isinstance(node, Folder):
                found += self._loose(node, names)
            elif node.loose:
                found.append(node)
        return found

    def _tree(self, folder: Folder, names: Names, damages: Mapping[File, str]) -> Tree:
        return {
            name: self._tree(node, names, damages)
            if isinstance(node, Folder)
            else damaged(node, damages.get(node, "all"))
            for name, node in names.get(folder, folder.kept).items()
        }


def write_tree(tree: Tree, folder: Path) -> None:
    """Write a tree below a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in tree.items():
        if isinstance(content, dict):
            write_tree(content, folder / name)
        else:
            (folder / name).write_bytes(content)


def read_tree(folder: Path) -> Tree:
    """Read what is below a folder."""
    return {path.name: read_tree(path) if path.is_dir() else path.read_bytes() for path in folder.iterdir()}
