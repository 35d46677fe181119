"""The calls by which a process changes a disk, seen one by one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock


@dataclass
class Call:
    """One of them.

    Attributes
    ----------
    kind : str
        ``open`` (which may make a file), ``write``, ``size``, ``sync``, ``close``, ``move``, ``link``, ``unlink``,
        ``mkdir`` or ``rmdir``.
    path : str
        Absolute; of an open file or folder the one that it was opened by.
    handle : int
        Of the file that was opened, written, synced or closed.
    data : bytes
        What is written.
    place : int
        Where, or -1 for where the last write ended; the new length for ``size``.
    other : str
        The second path.
    flags : int
        Of ``open``.
    """

    kind: str
    path: str
    handle: int = -1
    data: bytes = b""
    place: int = -1
    other: str = ""
    flags: int = 0

    @property
    def changes(self) -> bool:
        """Whether it can change what a crash leaves."""
        return self.kind not in {"close", "open"} or bool(self.flags & (os.O_CREAT | os.O_TRUNC))


Before = Callable[[Call, Callable[..., Any]], Any]
"""Is given a call and what does it, and returns what that returns, or does something else; writes take other data."""


@contextlib.contextmanager
def watched(folder: Path, before: Before) -> Iterator[None]:
    """Have `before` stand in for every call of this process that may change what is below a folder."""
    top = str(folder)
    paths: dict[int, str] = {}
    real: dict[str, Any] = {name: getattr(os, name) for name in _NAMES if hasattr(os, name)}

    def absolute(path: Any, folder: int | None = None) -> str:
        text = os.fsdecode(path)
        return os.path.normpath(os.path.join(os.getcwd() if folder is None else paths.get(folder, "/"), text))  # noqa: PTH109, PTH118

    def inside(path: str) -> bool:
        return path == top or path.startswith(top + os.sep)

    def seen(name: str, call: Call, *arguments: Any, **named: Any) -> Any:
        def act() -> Any:
            return real[name](*arguments, **named)

        return before(call, act) if inside(call.path) else act()

    def open_(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        where = absolute(path, dir_fd)
        call = Call("open", where, flags=flags)

        def act() -> int:
            call.handle = real["open"](path, flags, mode, dir_fd=dir_fd)
            return call.handle

        file: int = before(call, act) if inside(where) else act()
        paths[file] = where
        return file

    def close(file: int) -> None:
        where = paths.pop(file, "")
        seen("close", Call("close", where, file), file)

    def dup(file: int) -> int:
        again: int = real["dup"](file)
        if file in paths:
            paths[again] = paths[file]
            if inside(paths[file]):
                before(Call("open", paths[file], again), lambda: again)
        return again

    def write(file: int, data: Any) -> Any:
        where = paths.get(file, "")
        if not inside(where):
            return real["write"](file, data)
        return before(Call("write", where, file, bytes(data)), lambda given=data: real["write"](file, given))

    def pwrite(file: int, data: Any, place: int) -> Any:
        where = paths.get(file, "")
        if not inside(where):
            return real["pwrite"](file, data, place)
        call = Call("write", where, file, bytes(data), place)
        return before(call, lambda given=data: real["pwrite"](file, given, place))

    def sendfile(target: int, source: int, place: int, count: int) -> Any:
        if not inside(paths.get(target, "")):
            return real["sendfile"](target, source, place, count)
        return write(target, os.pread(source, count, place))

    def sync(name: str) -> Callable[[int], Any]:
        return lambda file: seen(name, Call("sync", paths.get(file, ""), file), file)

    def truncate(file: int, length: int) -> Any:
        return seen("ftruncate", Call("size", paths.get(file, ""), file, place=length), file, length)

    def allocate(file: int, place: int, length: int) -> Any:
        call = Call("size", paths.get(file, ""), file, place=max(place + length, os.fstat(file).st_size))
        return seen("posix_fallocate", call, file, place, length)

    def two(name: str, kind: str) -> Callable[..., Any]:
        def act(source: Any, target: Any, **named: Any) -> Any:
            first, second = absolute(source, named.get("src_dir_fd")), absolute(target, named.get("dst_dir_fd"))
            return seen(name, Call(kind, first, other=second), source, target, **named)

        return act

    def one(name: str, kind: str) -> Callable[..., Any]:
        def act(path: Any, *rest: Any, dir_fd: int | None = None) -> Any:
            return seen(name, Call(kind, absolute(path, dir_fd)), path, *rest, dir_fd=dir_fd)

        return act

    stand_ins: dict[str, Any] = {
        "open": open_,
        "close": close,
        "dup": dup,
        "write": write,
        "pwrite": pwrite,
        "sendfile": sendfile,
        "fsync": sync("fsync"),
        "fdatasync": sync("fdatasync"),
        "ftruncate": truncate,
        "posix_fallocate": allocate,
        "rename": two("rename", "move"),
        "replace": two("replace", "move"),
        "link": two("link", "link"),
        "unlink": one("unlink", "unlink"),
        "remove": one("remove", "unlink"),
        "mkdir": one("mkdir", "mkdir"),
        "rmdir": one("rmdir", "rmdir"),
    }
    with contextlib.ExitStack() as stack:
        for name, stand_in in stand_ins.items():
            if name in real:
                stack.enter_context(mock.patch.object(os, name, stand_in))
        yield


_NAMES = (
    "open",
    "close",
    "dup",
    "write",
    "pwrite",
    "sendfile",
    "fsync",
    "fdatasync",
    "ftruncate",
    "posix_fallocate",
    "rename",
    "replace",
    "link",
    "unlink",
    "remove",
    "mkdir",
    "rmdir",
)
