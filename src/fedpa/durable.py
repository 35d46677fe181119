"""Writes that outlive a crash of the machine: written, synced, renamed, and the folder synced."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

__all__ = ["link", "rename", "replace", "sync_file", "sync_folder", "write_file"]


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
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        rest = memoryview(data).cast("B")
        while rest:
            rest = rest[os.write(file, rest) :]
        if sync:
            os.fsync(file)
    finally:
        os.close(file)


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


def replace(path: Path, data: bytes | memoryview, *, sync: bool = True) -> None:
    """Write a file that takes the place of one of its name, if there is one, when it is complete."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.unlink(missing_ok=True)
    write_file(fresh, data, sync=sync)
    rename(fresh, path, sync=sync)


def link(source: Path, target: Path, *, sync: bool = True) -> None:
    """Give a file that never changes a second name, in place of whatever has it."""
    fresh = target.with_name(f".{target.name}.new")
    fresh.unlink(missing_ok=True)
    try:
        os.link(source, fresh)
    except OSError:  # not every file system has them
        shutil.copyfile(source, fresh)
        if sync:
            sync_file(fresh)
    rename(fresh, target, sync=sync)
    fresh.unlink(missing_ok=True)  # to rename a link over another of the same file does nothing


def _sync(path: Path, flags: int) -> None:
    file = os.open(path, flags)
    try:
        os.fsync(file)
    finally:
        os.close(file)
