"""The folder of a run that is going on: its place, its lock, and how it becomes the run."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from fedpa.artifacts import explained, take_place
from fedpa.durable import make_folder, replace, sync_file, sync_folder
from fedpa.errors import ArtifactError

__all__ = ["claimed", "finish", "is_begun", "new_room", "read_config", "room_of", "write_config"]

_CONFIG, _LOCK, _SUFFIX, _CHECKPOINTS = "config.yaml", ".lock", ".unfinished", "checkpoints"

_ROOM = "free some space, mend the disk or choose another folder"


def room_of(target: Path) -> Path:
    """Where a run lives until it is finished: beside the folder that it will be."""
    return target.with_name(target.name + _SUFFIX)


def _go_on(room: Path) -> str:
    return f"go on with fedpa adapt --resume {room.with_name(room.name.removesuffix(_SUFFIX))}"


def is_begun(target: Path) -> bool:
    """Whether an unfinished run of this name can go on."""
    return (room_of(target) / _CONFIG).exists()


def new_room(target: Path, *, overwrite: bool) -> Path:
    """Make the folder of a run that is to become `target`.

    Raises
    ------
    ArtifactError
        If `target` or an unfinished run of its name exists and `overwrite` is false, or its parent cannot be written.
    """
    room = room_of(target)
    if target.exists() and not overwrite:
        raise ArtifactError(f"{target}: already exists", "choose another folder or add --overwrite")
    if target.exists() and not target.is_dir():
        raise ArtifactError(f"{target}: is a file, expected a folder to write", "choose another name")
    if is_begun(target) and not overwrite:
        raise ArtifactError(f"{room}: an unfinished run is there", f"{_go_on(room)}; or start anew with --overwrite")
    try:
        if room.exists():
            with claimed(room):
                shutil.rmtree(room)
        make_folder(room.parent)
        room.mkdir()
    except OSError as error:
        raise ArtifactError(f"{target.parent}: cannot write here ({error.strerror})", _ROOM) from error
    return room


@contextlib.contextmanager
def claimed(room: Path, again: str = "") -> Iterator[None]:
    """Be the only process that works on an unfinished run.

    After a failure the folder stays, so that the run can go on, unless no round was completed.

    Parameters
    ----------
    room : Path
    again : str
        How to go on with it after an error; by default by ``--resume``.

    Raises
    ------
    ArtifactError
        If another process works on it, or it cannot be written.
    """
    try:
        file = os.open(room / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise ArtifactError(f"{room}: cannot write here ({error.strerror})", _ROOM) from error
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ArtifactError(f"{room}: another process works on this run", "wait for it, or stop it") from error
        try:
            with explained(
                room, "free some space or mend the disk; if rounds were completed, " + (again or _go_on(room))
            ):
                yield
        except BaseException:
            if not any(int(place.name) for place in room.glob("checkpoints/server/[0-9]*")):
                shutil.rmtree(room, ignore_errors=True)
            raise
    finally:
        os.close(file)


def write_config(room: Path, config: dict[str, Any], *, sync: bool = False) -> None:
    """Note what is adapted to what, and how; with `sync`, for good when this returns.

    Else its name is on the disk when the first generation is, whose folder syncs those above it.
    """
    replace(room / _CONFIG, yaml.safe_dump(config, sort_keys=True).encode(), sync_name=sync)


def read_config(folder: Path) -> dict[str, Any]:
    """What `write_config` noted.

    Raises
    ------
    ArtifactError
        If it is missing or cannot be read.
    """
    path = folder / _CONFIG
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ArtifactError(f"{path}: cannot be read ({error})", "adapt again") from error
    absent = [key for key in _KEYS if not isinstance(found, dict) or key not in found]
    if absent:
        raise ArtifactError(f"{path}: lacks {', '.join(absent)}", "adapt again")
    config: dict[str, Any] = found
    return config


_KEYS = ("method", "seed", "settings", "dataset", "foundation")


def finish(room: Path, target: Path, *, sync: bool) -> None:
    """Give a finished run its name, for good."""
    (room / _LOCK).unlink(missing_ok=True)
    if sync:
        for folder, folders, files in os.walk(room):
            if Path(folder) == room and _CHECKPOINTS in folders:
                folders.remove(_CHECKPOINTS)  # each round of theirs was synced
            for name in files:
                sync_file(Path(folder, name))
            sync_folder(Path(folder))
    take_place(room, target, sync=sync)
