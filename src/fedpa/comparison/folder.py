"""A folder that a long command fills piece by piece and goes on with when it is called again."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from fedpa.artifacts import FORMAT_VERSION, read_manifest, replace_file, write_json
from fedpa.errors import ArtifactError

__all__ = ["claimed"]


@contextlib.contextmanager
def claimed(out: Path, kind: Literal["comparison", "tuning"]) -> Iterator[Path]:
    """Make the folder or go on with it, alone; yields a folder for what is thrown away, which is then removed.

    Raises
    ------
    ArtifactError
        If `out` is something else, cannot be written, or another process is at work in it.
    """
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / "manifest.json").is_file())):
        raise ArtifactError(f"{out}: exists and is not the folder of a {kind}", "choose another folder")
    if (out / "manifest.json").is_file():
        read_manifest(out, kind)
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = (out / ".lock").open("w", encoding="utf-8")
    except OSError as error:
        raise ArtifactError(f"{out}: cannot write here ({error.strerror})") from error
    with lock:
        try:
            # The system lets go of it when this process ends, however it ends.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ArtifactError(f"{out}: another {kind} is at work here", "wait for it, or end it") from None
        with replace_file(out / "manifest.json") as fresh:
            write_json(fresh, {"kind": kind, "format_version": FORMAT_VERSION})
        scratch = out / "work" / "scratch"
        # What processes that were killed have left.
        shutil.rmtree(scratch, ignore_errors=True)
        for half in (*out.glob("**/.*.new"), *out.glob("work/**/.*.partial")):
            shutil.rmtree(half) if half.is_dir() else half.unlink()
        scratch.mkdir(parents=True)
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
