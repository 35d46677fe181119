"""Writes that outlive a crash of the machine: written, synced, renamed, and the folder synced.

Errors name the file, as those of the system's calls on open files do not.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

__all__ = ["append", "link", "make_folder", "naming", "rename", "replace", "sync_file", "sync_folder", "write_file"]


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Have an error of the system name the file that it is about."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def write_file(path: Path, data: bytes | memoryview, *, sync: bool = True) -> None:
    """Write a new file whole.

    Parameters
    ----------
    path : Path
        Must not exist.
    data : bytes or memoryview
    sync : bool
        Whether it is on the disk when this returns; its name is once the folder is synced.
    """
    _write(path, data, os.O_EXCL, sync=sync)


def append(path: Path, data: bytes) -> None:
    """Add to the end of a file, which is made if it is missing; for what may be lost."""
    _write(path, data, os.O_APPEND, sync=False)


def make_folder(path: Path, *, sync: bool = True) -> None:
    """Make a folder, and those above it that are missing, for good when this returns.

    The first that is there already is synced too: a process that was killed may have made it and not come to that. A
    folder that may not be read cannot be synced.
    """
    if not path.exists():
        make_folder(path.parent, sync=sync)
        path.mkdir(exist_ok=True)
    if sync:
        with contextlib.suppress(PermissionError):
            sync_folder(path.parent)


def sync_file(path: Path) -> None:
    """Have a file's bytes on the disk before this returns."""
    _sync(path, os.O_RDONLY)


def sync_folder(path: Path) -> None:
    """Have the names in a folder on the disk before this returns."""
    _sync(path, os.O_RDONLY | os.O_DIRECTORY)


def rename(source: Path, target: Path, *, sync: bool = True) -> None:
    """Give a file or folder another name in the same folder, for good when this returns."""
    source.rename(target)
    if sync:
        sync_folder(target.parent)


def replace(path: Path, data: bytes | memoryview, *, sync: bool = True, sync_name: bool | None = None) -> None:
    """Write a file that takes the place of one of its name, if there is one, when it is complete.

    Parameters
    ----------
    path : Path
    data : bytes or memoryview
    sync : bool
        Whether its bytes are on the disk when this returns.
    sync_name : bool, optional
        Whether its name is too; by default as `sync`. False: it is once the folder is synced.
    """
    fresh = path.with_name(f".{path.name}.new")
    fresh.unlink(missing_ok=True)
    write_file(fresh, data, sync=sync)
    rename(fresh, path, sync=sync if sync_name is None else sync_name)


def link(source: Path, target: Path) -> None:
    """Give a file that never changes a second name, in place of whatever has it, for good once both are synced."""
    fresh = target.with_name(f".{target.name}.new")
    fresh.unlink(missing_ok=True)
    try:
        os.link(source, fresh)
    except OSError:  # not every file system has them
        with naming(fresh):
            shutil.copyfile(source, fresh)
    fresh.rename(target)
    fresh.unlink(missing_ok=True)  # to rename one name of a file to another of its names does nothing


def _write(path: Path, data: bytes | memoryview, flags: int, *, sync: bool) -> None:
    with naming(path):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | flags, 0o666)
        try:
            rest = memoryview(data).cast("B")
            while rest:
                rest = rest[os.write(file, rest) :]
            if sync:
                os.fsync(file)
        finally:
            os.close(file)


def _sync(path: Path, flags: int) -> None:
    with naming(path):
        file = os.open(path, flags)
        try:
            os.fsync(file)
        finally:
            os.close(file)
