"""Fetches KuaiRand: resumed where it was cut off, checked against its hash, unpacked whole or not at all."""

from __future__ import annotations

import hashlib
import http.client
import json
import re
import tarfile
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from fedpa.artifacts import publish
from fedpa.errors import ArtifactError, ConfigError, DataError

__all__ = ["ARCHIVES", "BY_HAND", "download"]

ARCHIVES = {
    "kuairand-pure": "KuaiRand-Pure.tar.gz",
    "kuairand-1k": "KuaiRand-1K.tar.gz",
    "kuairand-27k": "KuaiRand-27K.tar.gz",
}
"""Archives of Zenodo record 10439422, licensed CC BY-SA 4.0."""

BY_HAND = {
    "kuaisar-r": "get KuaiSAR at https://zenodo.org/records/8181109, licence CC BY-NC-SA 4.0 (not commercial)",
    "kuaisar-s": "get KuaiSAR at https://zenodo.org/records/8181109, licence CC BY-NC-SA 4.0 (not commercial)",
    "movielens-100k": "get ml-100k.zip at https://grouplens.org/datasets/movielens/100k/ and accept its licence "
    "(research only, not to be redistributed)",
    "movielens-1m": "get ml-1m.zip at https://grouplens.org/datasets/movielens/1m/ and accept its licence "
    "(research only, not to be redistributed)",
}
"""Where the other data sets are and what their licences ask."""

_SITE = "https://zenodo.org"
_RECORD = "10439422"
_MD5 = {"KuaiRand-Pure.tar.gz": "0820331067a3784d9691136f772b35a7"}
_PIECE = 1 << 18
_ATTEMPTS = 5
_TIMEOUT_S = 60.0

_Report = Callable[[int, int | None], None]


def download(
    name: str,
    out: Path,
    *,
    base_url: str | None = None,
    overwrite: bool = False,
    progress: bool = True,
    wait_s: float = 1.0,
) -> Path:
    """Download and unpack a KuaiRand data set.

    The archive grows beside `out` as ``ARCHIVE.part`` and is kept when the download is cut off, so that the
    same call resumes it. It is removed when it is unpacked, or cannot be unpacked, or its hash is wrong.

    Parameters
    ----------
    name : str
        A key of `ARCHIVES`.
    out : Path
        Folder to make; it appears when everything is unpacked.
    base_url : str, optional
        A mirror of https://zenodo.org with the same paths.
    overwrite : bool
        Replace an existing folder.
    progress : bool
        Show a bar on standard error.
    wait_s : float
        Seconds before the second attempt; they double with every further one.

    Returns
    -------
    Path
        `out`.

    Raises
    ------
    ConfigError
        If the data set is not for downloading (its licence or its site asks for your consent) or is unknown.
    DataError
        If the server cannot be reached or refuses, the hash is wrong, or the archive is damaged or has a path
        that leaves it.
    ArtifactError
        If `out` exists and `overwrite` is false, or cannot be written.
    """
    if name not in ARCHIVES:
        raise ConfigError(
            f"{name!r} cannot be downloaded by fedpa, only {', '.join(ARCHIVES)}",
            f"{BY_HAND[name]}, and unpack it" if name in BY_HAND else "use one of those names",
        )
    if out.exists() and not overwrite:
        raise ArtifactError(f"{out}: already exists", "choose another folder or add --overwrite")
    archive = ARCHIVES[name]
    site = (base_url or _SITE).rstrip("/")
    if urlsplit(site).scheme not in ("http", "https"):
        raise ConfigError(f"base_url is {base_url!r}, expected http:// or https://", "correct the address")
    md5 = _MD5.get(archive) or _published_md5(site, archive, wait_s)
    part = out.parent / f"{archive}.part"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with _bar(archive, progress) as report:
            _fetch(f"{site}/records/{_RECORD}/files/{archive}", part, report, wait_s)
        found = _file_md5(part)
        if found != md5:
            _discard(part)
            raise DataError(
                f"{archive}: MD5 {found}, expected {md5}; the file was removed", "run the same command again"
            )
    except OSError as error:
        raise ArtifactError(
            f"{part}: could not be written ({error.strerror or error})", "free some space or choose another folder"
        ) from error
    try:
        with publish(out, overwrite=overwrite) as room:
            _unpack(part, archive, room)
    except DataError:
        _discard(part)
        raise
    _discard(part)
    return out


class _Interrupted(Exception):  # noqa: N818
    """A connection ended early or the server was busy: worth another attempt."""


def _fetch(url: str, part: Path, report: _Report, wait_s: float) -> None:
    """Complete `part`; attempts that bring something do not count."""
    failures = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            _continue(url, part, report)
            return
        except _Interrupted as error:
            after = part.stat().st_size if part.exists() else 0
            failures = 0 if after > before else failures + 1
            if failures >= _ATTEMPTS:
                raise DataError(
                    f"{url}: {error}; {after} bytes are kept in {part}",
                    "run the same command again to resume",
                ) from error
            time.sleep(wait_s * 2**failures)


def _continue(url: str, part: Path, report: _Report) -> None:
    """One request: append to `part`, or start it anew where the server does not resume this very file."""
    tag_file = part.with_name(f"{part.name}.etag")
    start = part.stat().st_size if part.exists() else 0
    tag = tag_file.read_text(encoding="utf-8") if start and tag_file.exists() else None
    headers = {"Range": f"bytes={start}-"} if start else {}
    if tag:
        headers["If-Range"] = tag
    with _open(url, headers) as response:
        if response is None:  # the range starts at or after the end: complete, or of another file
            if _total_of(url) != start:
                _discard(part)
                raise _Interrupted("the partial file did not fit the server's")
            report(start, start)
            return
        length = response.headers.get("Content-Length")
        total = start + int(length) if length and length.isdecimal() else None
        if response.status == 206:
            span = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", response.headers.get("Content-Range", ""))
            if span is None or int(span[1]) != start:
                _discard(part)
                raise _Interrupted("the server sent another range than asked for")
            total = total if span[3] == "*" else int(span[3])
        elif start:
            total = None if total is None else total - start
            start = 0
        new_tag = response.headers.get("ETag", "")
        if new_tag.startswith('"'):  # weak tags cannot tell whether a file is the same byte for byte
            tag_file.write_text(new_tag, encoding="utf-8")
        else:
            tag_file.unlink(missing_ok=True)
        _save(response, part, start, total, report)


def _save(response: Any, part: Path, start: int, total: int | None, report: _Report) -> None:
    done = start
    with part.open("ab" if start else "wb") as file:
        report(done, total)
        while True:
            try:
                piece = response.read(_PIECE)
            except (OSError, http.client.HTTPException) as error:
                raise _Interrupted(f"the connection broke ({error})") from error
            if not piece:
                break
            file.write(piece)
            done += len(piece)
            report(done, total)
    if total is not None and done < total:
        raise _Interrupted(f"the connection ended after {done} of {total} bytes")


@contextmanager
def _open(url: str, headers: dict[str, str]) -> Iterator[Any]:
    """A response, or None where the range cannot be satisfied."""
    request = urllib.request.Request(url, headers={"User-Agent": "fedpa", **headers})
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:
            response = None
        elif error.code in (408, 429) or error.code >= 500:
            raise _Interrupted(f"the server answered {error.code} {error.reason}") from error
        else:
            raise DataError(
                f"{url}: the server answered {error.code} {error.reason}", "check the address, or try later"
            ) from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise _Interrupted(f"no connection ({reason})") from error
    if response is None:
        yield None
        return
    with response:
        yield response


def _total_of(url: str) -> int | None:
    with _open(url, {"Range": "bytes=0-0"}) as response:
        if response is None:
            return 0
        span = re.fullmatch(r"bytes 0-0/(\d+)", response.headers.get("Content-Range", ""))
        length = span[1] if span else response.headers.get("Content-Length", "")
        return int(length) if length.isdecimal() else None


def _published_md5(site: str, archive: str, wait_s: float) -> str:
    url = f"{site}/api/records/{_RECORD}"
    content = _json(url, wait_s)
    files = content.get("files") if isinstance(content, dict) else None
    for file in files if isinstance(files, list) else []:
        checksum = str(file.get("checksum", "")) if isinstance(file, dict) else ""
        if checksum.startswith("md5:") and file.get("key") == archive:
            return checksum.removeprefix("md5:")
    raise DataError(f"{url}: names no MD5 of {archive}", "try later, or download the archive by hand")


def _json(url: str, wait_s: float) -> object:
    for attempt in range(_ATTEMPTS):
        try:
            with _open(url, {"Accept": "application/json"}) as response:
                return json.loads(response.read())
        except _Interrupted as error:
            if attempt == _ATTEMPTS - 1:
                raise DataError(f"{url}: {error}", "check the connection and try again") from error
            time.sleep(wait_s * 2**attempt)
        except (ValueError, http.client.HTTPException) as error:
            raise DataError(f"{url}: the answer is not JSON ({error})", "try later") from error
    raise DataError(f"{url}: no answer", "check the connection and try again")


def _unpack(part: Path, archive: str, room: Path) -> None:
    try:
        with tarfile.open(part, "r:gz") as tar:
            tar.extractall(room, filter="data")
    except tarfile.FilterError as error:
        raise DataError(f"{archive}: a path leaves the archive ({error})", "do not use this archive") from error
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise DataError(f"{archive}: damaged ({error})", "report this to whoever runs the server") from error


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    part.with_name(f"{part.name}.etag").unlink(missing_ok=True)


def _file_md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


@contextmanager
def _bar(archive: str, show: bool) -> Iterator[_Report]:
    if not show:
        yield lambda done, total: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(archive, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
