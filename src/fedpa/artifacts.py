"""Folders that appear whole or not at all, and the hashes that tie them together."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedpa.durable import sync_folder
from fedpa.errors import ArtifactError

__all__ = [
    "FORMAT_VERSION",
    "explained",
    "publish",
    "read_manifest",
    "replace_file",
    "sha256",
    "take_place",
    "to_json",
    "write_json",
]

FORMAT_VERSION = 1
"""Version of every folder that this package writes; another version is refused by name."""


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def to_json(content: object) -> str:
    """JSON with sorted keys, so that equal content gives equal bytes."""
    return json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n"


def write_json(path: Path, content: object) -> None:
    """Write JSON as `to_json` gives it."""
    path.write_text(to_json(content), encoding="utf-8")


def read_manifest(folder: Path, kind: str, name: str = "manifest.json") -> dict[str, Any]:
    """Read the JSON that says what a folder is.

    Parameters
    ----------
    folder : Path
        The folder that the user named.
    kind : {"dataset", "foundation", "run"}
        What the folder must be; its manifest says so under ``"kind"``.
    name : str
        File name of the manifest inside the folder.

    Raises
    ------
    ArtifactError
        If the folder or manifest is missing, is not JSON, is of another kind, or was written in
        another format version.
    """
    path = folder / name
    if not path.is_file():
        found = "is not a folder" if not folder.is_dir() else f"holds no {name}"
        raise ArtifactError(f"{folder}: expected a {kind} folder, but it {found}", _MAKE[kind])
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ArtifactError(f"{path}: not readable as JSON ({error})", _MAKE[kind]) from error
    if not isinstance(manifest, dict) or manifest.get("kind") != kind:
        other = manifest.get("kind") if isinstance(manifest, dict) else type(manifest).__name__
        raise ArtifactError(f"{path}: expected a {kind}, found {other!r}", _MAKE[kind])
    if manifest.get("format_version") != FORMAT_VERSION:
        raise ArtifactError(
            f"{path}: written in format version {manifest.get('format_version')!r}, "
            f"this fedpa reads version {FORMAT_VERSION}",
            _MAKE[kind],
        )
    return manifest


_MAKE = {
    "dataset": "make it with `fedpa prepare SOURCE --raw DIR --out DATASET`",
    "foundation": "make it with `fedpa pretrain DATASET --out FOUNDATION`",
    "run": "make it with `fedpa adapt FOUNDATION DATASET --out RUN`",
}


@contextlib.contextmanager
def publish(out: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Fill a folder that appears under its name only when it is complete.

    Yields a temporary folder beside `out`; when the block ends well it is renamed to `out`, when it
    fails it is removed and `out` is as it was.

    Raises
    ------
    ArtifactError
        If `out` exists and `overwrite` is false, or its parent cannot be written.
    """
    if out.exists() and not overwrite:
        raise ArtifactError(f"{out}: already exists", "choose another folder or add --overwrite")
    if out.exists() and not out.is_dir():
        raise ArtifactError(f"{out}: is a file, expected a folder to write", "choose another name")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        room = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
    except OSError as error:
        raise ArtifactError(f"{out.parent}: cannot write here ({error.strerror})") from error
    try:
        with explained(out):
            yield room
        room.chmod(0o777 & ~_umask())
        take_place(room, out)
    finally:
        shutil.rmtree(room, ignore_errors=True)


def take_place(room: Path, out: Path, *, sync: bool = False) -> None:
    """Give a complete folder its name, in place of the one that has it, if there is one; with `sync`, for good."""
    old = None
    if out.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".old", dir=out.parent))
        out.rename(old / "old")
    try:
        room.rename(out)
    except OSError:
        if old is not None:
            (old / "old").rename(out)
            old.rmdir()
        raise
    if sync:
        sync_folder(out.parent)
    if old is not None:
        shutil.rmtree(old)


@contextlib.contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Write a file that is replaced when the new one is complete.

    Yields the path to write to, beside `path`; it is removed when the block fails.

    Raises
    ------
    ArtifactError
        If the file cannot be written.
    """
    fresh = path.with_name(f".{path.name}.new")
    try:
        with explained(path):
            yield fresh
            fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)


@contextlib.contextmanager
def explained(
    out: Path, fix: str = "free some space or choose another folder; nothing was left half-written"
) -> Iterator[None]:
    """Turn a failure to write into an error that names what was being written and says what to do."""
    try:
        yield
    except Exception as error:
        # Polars and safetensors have errors of their own for a full disk.
        if not isinstance(error, OSError) and os.strerror(errno.ENOSPC) not in str(error):
            raise
        raise ArtifactError(
            f"{getattr(error, 'filename', None) or out}: could not be written "
            f"({getattr(error, 'strerror', None) or error})",
            fix,
        ) from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
