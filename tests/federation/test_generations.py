"""Generations: whole or not at all, kept or dropped, and no byte of one changes unnoticed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from fedpa.durable import write_file
from fedpa.errors import ArtifactError
from fedpa.federation import generations as module
from fedpa.federation.generations import MANIFEST, Generations

FILES = {"a.bin": bytes(range(40)), "b.bin": b"\x00" * 8, "empty.bin": b""}
KIND = "numbers of a test"


def make(generations: Generations, number: int, files: dict[str, bytes] = FILES, **about: Any) -> Path:
    draft = generations.draft(number)
    for name, content in files.items():
        write_file(draft.path / name, content, sync=False)
    return draft.publish({"number": number, **about})


@pytest.fixture
def some(tmp_path: Path) -> Generations:
    return Generations(tmp_path / "generations", KIND)


def names(generations: Generations) -> list[str]:
    return sorted(path.name for path in generations.folder.iterdir())


def test_what_was_published_is_found_again(some: Generations) -> None:
    assert make(some, 7, loss=0.1, lines=[{"round": 1}]) == some.path(7)
    make(some, 12)
    for found in (some, Generations(some.folder, KIND), Generations(some.folder, KIND, sync=False)):
        assert found.numbers() == [7, 12]
        assert found.about(7) == {"number": 7, "loss": 0.1, "lines": [{"round": 1}]}
        assert found.good() == {7: found.about(7), 12: {"number": 12}}
    assert {path.name: path.read_bytes() for path in some.path(7).iterdir() if path.name != MANIFEST} == FILES


def test_a_draft_counts_for_nothing(some: Generations) -> None:
    make(some, 1)
    draft = some.draft(2)
    write_file(draft.path / "a.bin", b"half")
    assert some.numbers() == [1]
    assert [*some.good()] == [1]
    draft.discard()
    assert names(some) == ["000001"]


def test_a_draft_begins_empty_and_takes_the_place_of_its_number(some: Generations) -> None:
    make(some, 1, {"a.bin": b"old", "gone.bin": b"old"})
    left = some.draft(1)
    write_file(left.path / "half.bin", b"half")
    assert some.about(1) == {"number": 1}
    make(some, 1, {"a.bin": b"new"}, again=True)
    assert some.about(1) == {"number": 1, "again": True}
    assert sorted(path.name for path in some.path(1).iterdir()) == ["a.bin", MANIFEST]
    assert (some.path(1) / "a.bin").read_bytes() == b"new"
    assert names(some) == ["000001"]


def test_keeping_and_dropping(some: Generations) -> None:
    for number in (0, 1, 2, 5, 1_000_000):
        make(some, number)
    some.keep([1, 5, 9, 1_000_000])
    assert some.numbers() == [1, 5, 1_000_000]
    some.drop(5)
    assert [*some.good()] == [1, 1_000_000]
    some.keep([])
    assert names(some) == []


class Killed(Exception):  # noqa: N818
    """Where the process ends."""


class _Stopper:
    """Stops before the n-th call of some functions that change the disk; None: counts them."""

    def __init__(self) -> None:
        self.calls = 0
        self.stop: int | None = None

    def of(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            self.calls += 1
            if self.calls == self.stop:
                raise Killed
            return plain(*arguments, **named)

        return call


def test_a_crash_leaves_all_of_a_generation_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopper = _Stopper()
    for name in ("write_file", "rename", "sync_file", "sync_folder"):
        monkeypatch.setattr(module, name, stopper.of(getattr(module, name)))
    monkeypatch.setattr(Path, "rename", stopper.of(Path.rename))

    def stopped_at(call: int | None) -> Generations:
        found = Generations(tmp_path / str(call), KIND)
        make(found, 1)
        stopper.calls, stopper.stop = 0, call
        try:
            make(found, 2)
        finally:
            stopper.stop = None
        return found

    assert stopped_at(None).numbers() == [1, 2]
    for call in range(1, stopper.calls + 1):
        with pytest.raises(Killed):
            stopped_at(call)
        left = tmp_path / str(call)
        assert any(path.name.startswith(".") for path in left.iterdir())
        again = Generations(left, KIND)
        assert again.good() == {1: {"number": 1}}
        assert names(again) == ["000001"]
        make(again, 2)
        assert [*again.good()] == [1, 2]
    assert stopper.calls > 5


def test_a_crash_while_dropping_leaves_no_half(some: Generations, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (1, 2):
        make(some, number)

    def partly(path: Path, **_: Any) -> None:
        if Path(path).exists():
            (Path(path) / "a.bin").unlink()
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", partly)
        with pytest.raises(Killed):
            some.drop(1)
    assert some.good() == {2: {"number": 2}}
    assert len(names(some)) == 2
    assert names(Generations(some.folder, KIND)) == ["000002"]


def test_leftovers_of_a_crash_are_removed_and_nothing_else(some: Generations) -> None:
    make(some, 3)
    for name in (".000004.partial", ".000002.gone"):
        (some.folder / name).mkdir()
        (some.folder / name / "a.bin").write_bytes(b"half")
    (some.folder / "notes.txt").write_text("mine")
    again = Generations(some.folder, KIND)
    assert names(again) == ["000003", "notes.txt"]
    assert [*again.good()] == [3]


def test_only_with_sync_does_it_wait_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files, manifest and the folder before the rename, the folder above after it."""
    synced: list[str] = []
    plain = os.fsync

    def noting(file: int) -> None:
        path = Path(f"/proc/self/fd/{file}").readlink()
        synced.append(str(path.relative_to(tmp_path)))
        plain(file)

    for_good, fast = Generations(tmp_path / "good", KIND), Generations(tmp_path / "fast", KIND, sync=False)
    monkeypatch.setattr(os, "fsync", noting)
    make(fast, 1)
    assert synced == []
    make(for_good, 1)
    draft = "good/.000001.partial"
    assert sorted(synced[:4]) == sorted(f"{draft}/{name}" for name in (*FILES, MANIFEST))
    assert synced[4:] == [draft, "good"]


def refused(generations: Generations, number: int, *words: str) -> str:
    """The message that a generation is refused with; it names the file or folder."""
    with pytest.raises(ArtifactError) as caught:
        generations.about(number)
    message = caught.value.message
    assert all(word in message for word in words), message
    return message


def files_of(generations: Generations, number: int) -> list[Path]:
    return sorted(generations.path(number).iterdir())


def test_every_byte_is_checked(some: Generations) -> None:
    """Each byte of each file with one of its bits flipped, a different one from byte to byte."""
    make(some, 1, lines=[1, 2.5, None])
    flips = 0
    for file in files_of(some, 1):
        content = file.read_bytes()
        for place in range(len(content)):
            damaged = bytearray(content)
            damaged[place] ^= 1 << place % 8
            file.write_bytes(damaged)
            refused(some, 1, f"{file}: damaged")
            flips += 1
        file.write_bytes(content)
    assert flips > 500
    assert some.about(1)["lines"] == [1, 2.5, None]


def test_every_truncation_and_every_addition_is_noticed(some: Generations) -> None:
    make(some, 1)
    for file in files_of(some, 1):
        content = file.read_bytes()
        others = [content[:length] for length in range(len(content))] + [content + b"\n", content + content]
        for other in others:
            if other == content:  # twice nothing
                continue
            file.write_bytes(other)
            refused(some, 1, f"{file}: damaged")
        file.write_bytes(content)
    assert some.about(1) == {"number": 1}


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_a_missing_file_is_named(some: Generations, name: str) -> None:
    make(some, 1)
    (some.path(1) / name).unlink()
    refused(some, 1, f"000001/{name}: cannot be read (No such file or directory)")
    refused(some, 2, f"000002/{MANIFEST}: cannot be read")
    (some.path(1) / name).mkdir()  # nor is a folder a file
    refused(some, 1, f"000001/{name}: ")


def test_the_good_ones_are_found_and_the_others_logged(some: Generations, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(4):
        make(some, number)
    (some.path(1) / "a.bin").write_bytes(b"short")
    (some.path(2) / MANIFEST).unlink()
    assert [*some.good()] == [0, 3]
    said = [record.getMessage() for record in caplog.records]
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
    assert said[0] == f"{some.path(1) / 'a.bin'}: damaged: 5 bytes, expected 40; it is left out"
    assert f"{some.path(2) / MANIFEST}: cannot be read" in said[1]
    some.keep([0])
    assert names(some) == ["000000"]


def test_another_kind_is_refused(some: Generations) -> None:
    make(some, 1)
    refused(Generations(some.folder, "letters"), 1, MANIFEST, f"holds {KIND}, expected letters")


def test_another_number_is_refused(some: Generations) -> None:
    make(some, 1)
    some.path(1).rename(some.path(2))
    refused(some, 2, "000002: is generation 1, expected 2")


def rewritten(path: Path, **changes: Any) -> None:
    """Change a manifest and its checksum with it, as another version would have written it."""
    body = json.dumps(json.loads(path.read_bytes().rpartition(b"\n")[0]) | changes).encode()
    path.write_bytes(body + b"\n" + sha256(body).hexdigest().encode())


def test_another_version_is_refused(some: Generations, monkeypatch: pytest.MonkeyPatch) -> None:
    make(some, 1)
    rewritten(some.path(1) / MANIFEST, files=[], format_version=99)
    refused(some, 1, MANIFEST, "written in format version 99, this fedpa reads 1")
    monkeypatch.setattr(module, "FORMAT_VERSION", 2)
    make(some, 2)
    assert some.about(2) == {"number": 2}
    monkeypatch.undo()
    refused(some, 2, "written in format version 2, this fedpa reads 1")


def test_what_is_noted_must_be_json(some: Generations) -> None:
    for about in ({"loss": float("nan")}, {"loss": {1, 2}}):
        with pytest.raises((ValueError, TypeError)):
            some.draft(1).publish(about)
        assert some.numbers() == []


def test_a_crash_while_one_takes_anothers_place_leaves_one_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopper = _Stopper()
    for name in ("write_file", "rename", "sync_file", "sync_folder"):
        monkeypatch.setattr(module, name, stopper.of(getattr(module, name)))
    monkeypatch.setattr(shutil, "rmtree", stopper.of(shutil.rmtree))

    def stopped_at(call: int | None) -> Generations:
        found = Generations(tmp_path / str(call), KIND)
        make(found, 1, version="old")
        stopper.calls, stopper.stop = 0, call
        try:
            make(found, 1, version="new")
        finally:
            stopper.stop = None
        return found

    assert stopped_at(None).good() == {1: {"number": 1, "version": "new"}}
    versions = []
    for call in range(1, stopper.calls + 1):
        with pytest.raises(Killed):
            stopped_at(call)
        again = Generations(tmp_path / str(call), KIND)
        assert names(again) == ["000001"]
        versions.append(again.good()[1]["version"])
    assert versions == sorted(versions, reverse=True), "the old one until the new one is there"
    assert {*versions} == {"old", "new"}
