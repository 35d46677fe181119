"""What a node keeps between the messages of a secure sum, on its own disk, readable by its owner alone."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedpa.errors import ArtifactError
from fedpa.privacy.secagg.terms import ProtocolError

__all__ = ["Vault"]

_OPEN, _RELEASED, _LOCK = "session.json", "released.json", "lock"

_FIX = {
    _OPEN: "delete it; this node is then missing from the round that was under way",
    _RELEASED: "delete it only if no round will be repeated: it keeps sums over other nodes from giving one away",
}


class Vault:
    """A folder with the secrets of at most one session, and of past ones only what must not be summed anew.

    Every write is complete on disk before it counts: a node never shows what it could forget to have shown.

    Parameters
    ----------
    folder : Path
        Made if missing, for its owner alone.

    Raises
    ------
    ArtifactError
        If the folder cannot be made or written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.chmod(0o700)
        except OSError as error:
            raise ArtifactError(f"{folder}: cannot be made ({error.strerror})") from error

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes of this node out.

        Raises
        ------
        ProtocolError
            If another one is at work.
        """
        handle = os.open(self.folder / _LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ProtocolError("this node is at work on another message") from None
            yield
        finally:
            os.close(handle)

    def load(self) -> dict[str, Any] | None:
        """The open session, if there is one."""
        return self._read(_OPEN)

    def save(self, session: dict[str, Any]) -> None:
        """Replace the open session."""
        self._write(_OPEN, session)

    def close(self) -> None:
        """Delete the open session with its secrets, if there is one."""
        try:
            (self.folder / _OPEN).unlink(missing_ok=True)
            (self.folder / f"{_OPEN}.new").unlink(missing_ok=True)
            self._sync_folder()
        except OSError as error:
            raise ArtifactError(f"{self.folder}: cannot be written ({error.strerror})") from error

    def released(self, vector: str) -> list[str] | None:
        """The nodes over which a vector was summed before, if it was; by its digest."""
        found: list[str] | None = (self._read(_RELEASED) or {}).get(vector)
        return found

    def release(self, vector: str, nodes: list[str]) -> None:
        """Note that a vector is summed over these nodes; it never will be over others."""
        self._write(_RELEASED, {**(self._read(_RELEASED) or {}), vector: nodes})

    def _read(self, name: str) -> dict[str, Any] | None:
        path = self.folder / name
        try:
            found = json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise ArtifactError(f"{path}: not readable ({error})", _FIX[name]) from error
        if not isinstance(found, dict):
            raise ArtifactError(f"{path}: not what this version writes", _FIX[name])
        return found

    def _write(self, name: str, content: dict[str, Any]) -> None:
        fresh = self.folder / f"{name}.new"
        try:
            fresh.unlink(missing_ok=True)
            handle = os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
            with os.fdopen(handle, "wb") as file:
                file.write(json.dumps(content).encode())
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(self.folder / name)
            self._sync_folder()
        except OSError as error:
            raise ArtifactError(f"{self.folder / name}: could not be written ({error.strerror})") from error

    def _sync_folder(self) -> None:
        handle = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
