"""Numbered folders of a run, each of which appears whole, checked and for good, or not at all.

A generation is never changed in place. It is written beside its name; its files, a manifest with their checksums, and
the folder are synced; then it is renamed and the folder above is synced. What a crash leaves is a folder whose name
says that it does not count.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fedpa.artifacts import FORMAT_VERSION, sha256
from fedpa.durable import make_folder, rename, sync_file, sync_folder, write_file
from fedpa.errors import ArtifactError

__all__ = ["MANIFEST", "Draft", "Generations"]

MANIFEST = "generation.json"
_log = logging.getLogger(__name__)
_DIGITS = 6
_PARTIAL, _GONE, _ASIDE = ".partial", ".gone", ".aside"


class Draft:
    """A generation that is being written; a folder that counts for nothing before `publish`.

    Attributes
    ----------
    path : Path
        The folder to fill, with files alone.
    """

    def __init__(self, generations: Generations, number: int) -> None:
        self._generations = generations
        self.number = number
        self.path = generations.folder / f".{number:0{_DIGITS}}{_PARTIAL}"
        shutil.rmtree(self.path, ignore_errors=True)
        self.path.mkdir()

    def fill(self, folder: Path) -> None:
        """Copy the files of another generation, but for its manifest."""
        for file in folder.iterdir():
            if file.name != MANIFEST:
                shutil.copyfile(file, self.path / file.name)

    def publish(self, about: Mapping[str, Any]) -> Path:
        """Make it count, for good.

        Parameters
        ----------
        about : mapping
            JSON beside the files; see `Generations.about`.
        """
        sync = self._generations.sync
        files = {}
        for file in sorted(self.path.iterdir()):
            files[file.name] = {"bytes": file.stat().st_size, "sha256": sha256(file)}
            if sync:
                sync_file(file)
        manifest = {
            "kind": self._generations.kind,
            "format_version": FORMAT_VERSION,
            "number": self.number,
            "files": files,
            "about": dict(about),
        }
        body = json.dumps(manifest, allow_nan=False).encode()
        line = b"\n" + hashlib.sha256(body).hexdigest().encode()
        write_file(self.path / MANIFEST, body + line, sync=sync)
        if sync:
            sync_folder(self.path)
        target = self._generations.path(self.number)
        if target.exists():
            aside = target.with_name(f".{target.name}{_ASIDE}")
            shutil.rmtree(aside, ignore_errors=True)
            rename(target, aside, sync=sync)
            rename(self.path, target, sync=sync)
            shutil.rmtree(aside, ignore_errors=True)
        else:
            rename(self.path, target, sync=sync)
        return target

    def discard(self) -> None:
        """Remove it."""
        shutil.rmtree(self.path, ignore_errors=True)


class Generations:
    """A folder of generations.

    Parameters
    ----------
    folder : Path
        Made if it is missing; what a crash left half-written in it is removed, and what it left half-replaced put back.
    kind : str
        What they are, noted in each manifest.
    sync : bool
        Whether they outlive a crash of the machine; without it they outlive one of the process.
    """

    def __init__(self, folder: Path, kind: str, *, sync: bool = True) -> None:
        self.folder, self.kind, self.sync = folder, kind, sync
        make_folder(folder, sync=sync)
        for left in folder.iterdir():
            if left.name.startswith(".") and left.suffix == _ASIDE and not self._replaced(left).exists():
                rename(left, self._replaced(left), sync=sync)
            elif left.name.startswith(".") and left.suffix in (_PARTIAL, _GONE, _ASIDE):
                shutil.rmtree(left, ignore_errors=True)

    @staticmethod
    def _replaced(aside: Path) -> Path:
        """Where a generation was that a new one was to take the place of."""
        return aside.with_name(aside.stem.removeprefix("."))

    def draft(self, number: int) -> Draft:
        """Begin a generation; what was left of an unfinished one of the same number is removed."""
        return Draft(self, number)

    def path(self, number: int) -> Path:
        """Where a generation is."""
        return self.folder / f"{number:0{_DIGITS}}"

    def numbers(self) -> list[int]:
        """Numbers of all generations, ascending, checked or not."""
        return sorted(int(place.name) for place in self.folder.iterdir() if place.name.isdecimal())

    def good(self) -> dict[int, dict[str, Any]]:
        """What `about` says of each that it accepts; a line in the log names each damaged one."""
        found = {}
        for number in self.numbers():
            try:
                found[number] = self.about(number)
            except ArtifactError as error:
                _log.warning("%s; it is left out", error.message)
        return found

    def about(self, number: int) -> dict[str, Any]:
        """What was noted with a generation, after all its bytes were checked.

        Raises
        ------
        ArtifactError
            If it is missing, damaged, cut short, of another kind or from another version.
        """
        folder = self.path(number)
        manifest = self._manifest(folder)
        for name, expected in manifest["files"].items():
            file = folder / name
            try:
                size = file.stat().st_size
                if size != expected["bytes"]:
                    raise ArtifactError(f"{file}: damaged: {size} bytes, expected {expected['bytes']}")
                if sha256(file) != expected["sha256"]:
                    raise ArtifactError(f"{file}: damaged: its checksum is not the one noted")
            except OSError as error:
                raise ArtifactError(f"{file}: cannot be read ({error.strerror})") from error
        if manifest["number"] != number:
            raise ArtifactError(f"{folder}: is generation {manifest['number']}, expected {number}")
        found: dict[str, Any] = manifest["about"]
        return found

    def _manifest(self, folder: Path) -> dict[str, Any]:
        path = folder / MANIFEST
        try:
            body, newline, line = path.read_bytes().rpartition(b"\n")
        except OSError as error:
            raise ArtifactError(f"{path}: cannot be read ({error.strerror})") from error
        if not newline or hashlib.sha256(body).hexdigest().encode() != line:
            raise ArtifactError(f"{path}: damaged: its checksum is not the one noted")
        manifest: dict[str, Any] = json.loads(body)
        if manifest["format_version"] != FORMAT_VERSION:
            raise ArtifactError(
                f"{path}: written in format version {manifest['format_version']!r}, this fedpa reads {FORMAT_VERSION}"
            )
        if manifest["kind"] != self.kind:
            raise ArtifactError(f"{path}: holds {manifest['kind']}, expected {self.kind}")
        return manifest

    def keep(self, numbers: Iterable[int]) -> None:
        """Remove every other generation."""
        kept = set(numbers)
        for number in self.numbers():
            if number not in kept:
                self.drop(number)

    def drop(self, number: int) -> None:
        """Remove a generation: first its name, so that it never counts with half of its files."""
        gone = self.folder / f".{number:0{_DIGITS}}{_GONE}"
        shutil.rmtree(gone, ignore_errors=True)
        self.path(number).rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
