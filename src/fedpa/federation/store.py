"""Personal parameters on disk: one row per user, memory-mapped, in generations.

The stored values are *changes from the start*: a user who never took part is a row of zeros. Each generation is
a safetensors file with one tensor ``personal`` [users, size]. A round reads the current generation and writes
the next one, so the current one is never touched.
"""

from __future__ import annotations

import itertools
import json
import mmap
import os
import struct
import weakref
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedpa.durable import naming, write_file
from fedpa.errors import ArtifactError

__all__ = ["Generation", "PersonalStore"]

_DTYPES: dict[str, tuple[str, type[np.floating]]] = {
    "float32": ("F32", np.float32),
    "float64": ("F64", np.float64),
}
_AGAIN = "adapt again"
_RELEASE_BYTES = 256 << 20
_COPY_ROWS = 4096
Rows = npt.NDArray[np.int64]
Values = npt.NDArray[np.floating]


class Generation:
    """One memory-mapped file of personal parameters.

    Pages that were touched are given back to the system every 256 MiB, so that a million users do not count
    as memory of the process.
    """

    def __init__(self, path: Path, *, writable: bool = False) -> None:
        self.path = path
        flags = os.O_RDWR if writable else os.O_RDONLY
        try:
            file = os.open(path, flags)
        except OSError as error:
            raise ArtifactError(f"{path}: cannot be opened ({error.strerror})", _AGAIN) from error
        try:
            length = os.fstat(file).st_size
            head = os.pread(file, 8, 0)
            size = struct.unpack("<Q", head)[0] if len(head) == 8 else length
            if 8 + size > length:
                raise ArtifactError(f"{path}: cut short; expected a safetensors header, found {length} bytes", _AGAIN)
            try:
                header = json.loads(os.pread(file, size, 8))
                entry = header["personal"]
                dtype = dict(_DTYPES.values())[entry["dtype"]]
                users, width = map(int, entry["shape"])
            except (ValueError, KeyError, TypeError) as error:
                raise ArtifactError(f"{path}: its header is not that of personal parameters", _AGAIN) from error
            if length != 8 + size + users * width * np.dtype(dtype).itemsize:
                raise ArtifactError(f"{path}: cut short; {users} users were expected, found {length} bytes", _AGAIN)
            self.metadata: dict[str, str] = header.get("__metadata__", {})
            self._map = mmap.mmap(file, length, mmap.MAP_SHARED, mmap.PROT_READ)
            self._file = os.dup(file) if writable else -1
        finally:
            os.close(file)
        self._offset = 8 + size
        weakref.finalize(self, _close, self._file)
        self._array = np.frombuffer(self._map, dtype, users * width, 8 + size).reshape(users, width)
        self._touched = 0

    @classmethod
    def create(cls, path: Path, users: int, size: int, dtype: str, metadata: Mapping[str, str]) -> Generation:
        """A new file of zeros, its room reserved: to read a hole through a map of a full memory disk is fatal."""
        name, kind = _DTYPES[dtype]
        length = users * size * np.dtype(kind).itemsize
        header = json.dumps(
            {
                "__metadata__": dict(metadata),
                "personal": {"dtype": name, "shape": [users, size], "data_offsets": [0, length]},
            },
            sort_keys=True,
        ).encode()
        header += b" " * (-(8 + len(header)) % 64)
        write_file(path, struct.pack("<Q", len(header)) + header, sync=False)
        with naming(path):
            file = os.open(path, os.O_WRONLY)
            try:
                os.ftruncate(file, 8 + len(header) + length)
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file, 0, 8 + len(header) + length)
            finally:
                os.close(file)
        return cls(path, writable=True)

    @property
    def shape(self) -> tuple[int, int]:
        """Users and weights per user."""
        return self._array.shape

    @property
    def dtype(self) -> np.dtype[np.floating]:
        """Of every weight."""
        found: np.dtype[np.floating] = self._array.dtype
        return found

    def read(self, rows: Rows) -> Values:
        """A copy of the rows [len(rows), size]."""
        values = self._array[rows]
        self._release(values.nbytes)
        return values

    def write(self, rows: Rows, values: Values) -> None:
        """Write rows in place; ascending rows that follow each other go in one call.

        Written through the file, not the map: a new page of a map costs a page fault, a multiple of the copy.
        """
        if not len(rows):
            return
        values = np.ascontiguousarray(values, self._array.dtype)
        width = self._array.shape[1] * values.itemsize
        edges = [0, *(np.flatnonzero(np.diff(rows) != 1) + 1).tolist(), len(rows)]
        with naming(self.path):
            for begin, end in itertools.pairwise(edges):
                rest = values[begin:end].data.cast("B")
                place = self._offset + int(rows[begin]) * width
                while rest:
                    done = os.pwrite(self._file, rest, place)
                    rest, place = rest[done:], place + done

    def copy_rows(self, other: Generation, rows: Rows, place: int = 0) -> None:
        """Copy rows from another generation, a few thousand at a time, to `place` rows further on."""
        for begin in range(0, len(rows), _COPY_ROWS):
            piece = rows[begin : begin + _COPY_ROWS]
            self.write(piece + place, other.read(piece))

    def flush(self) -> None:
        """Have the written rows on the disk before this returns."""
        with naming(self.path):
            os.fsync(self._file)

    def _release(self, touched: int) -> None:
        self._touched += touched
        if self._touched >= _RELEASE_BYTES:
            self._map.madvise(mmap.MADV_DONTNEED)
            self._touched = 0


def _close(file: int) -> None:
    if file >= 0:
        os.close(file)


class PersonalStore:
    """Rows that are read from one generation and written to the next.

    Parameters
    ----------
    users, size : int
        Rows and weights per row; `size` may be 0 for methods without personal parameters, which have no files.
    dtype : {"float32", "float64"}
    metadata : mapping of str to str
        Written into each file's header, for instance the names and shapes behind the columns.

    Attributes
    ----------
    current : Generation or None
        What is read; None: zeros.
    """

    def __init__(self, users: int, size: int, dtype: str, metadata: Mapping[str, str] | None = None) -> None:
        self.size = size
        self.current: Generation | None = None
        self._users, self._dtype, self._metadata = users, dtype, dict(metadata or {})
        self._next: Generation | None = None

    @classmethod
    def view(cls, path: Path | None, users: int, size: int, dtype: str) -> PersonalStore:
        """The finished store of a run, to read from; None where the method has no personal parameters.

        Raises
        ------
        ArtifactError
            If the file is missing, cut short or holds other users or weights.
        """
        store = cls(users, size, dtype)
        store.open(path)
        return store

    def open(self, path: Path | None) -> None:
        """Read from a file; None: zeros.

        Raises
        ------
        ArtifactError
            If it is missing, cut short or holds other users or weights.
        """
        self._next = None
        self.current = None if path is None or not self.size else Generation(path)
        if self.current is None:
            return
        if self.current.dtype != _DTYPES[self._dtype][1]:
            raise ArtifactError(f"{path}: holds {self.current.dtype}, expected {self._dtype}", _AGAIN)
        users, size = self.current.shape
        if (users, size) != (self._users, self.size):
            raise ArtifactError(f"{path}: holds {users} users of {size} weights, expected {self._users} of {self.size}")

    def read(self, rows: Rows) -> Values:
        """Changes from the start of the given users [len(rows), size]."""
        if self.current is None:
            return np.zeros((len(rows), self.size), _DTYPES[self._dtype][1])
        return self.current.read(rows)

    def begin(self, path: Path, writers: Rows) -> None:
        """Open the next generation, a new file; every user but the `writers` keeps its values."""
        if not self.size:
            return
        self._next = Generation.create(path, self._users, self.size, self._dtype, self._metadata)
        if self.current is not None:
            keep = np.ones(self._users, bool)
            keep[writers] = False
            self._next.copy_rows(self.current, np.flatnonzero(keep))

    def write(self, rows: Rows, values: Values) -> None:
        """Write rows of the generation that `begin` opened."""
        if self.size:
            if self._next is None:
                raise ArtifactError("the personal store was written to outside a round")
            self._next.write(rows, values)
