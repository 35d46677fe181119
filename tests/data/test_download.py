import contextlib
import hashlib
import io
import json
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from fedpa.data.download import download
from fedpa.errors import ArtifactError, ConfigError, DataError

ARCHIVE = "KuaiRand-1K.tar.gz"
CONTENT = np.random.default_rng(0).integers(0, 256, 600_000, dtype=np.uint8).tobytes()  # does not compress


def archive(member: str = "KuaiRand-1K/data/log.csv") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        entry = tarfile.TarInfo(member)
        entry.size = len(CONTENT)
        tar.addfile(entry, io.BytesIO(CONTENT))
    return buffer.getvalue()


class Mirror:
    """What the server serves, how it misbehaves, and what it was asked."""

    def __init__(self) -> None:
        self.body = archive()
        self.md5: str | None = None
        self.tag = '"one"'
        self.cuts: list[int] = []  # bytes after which each of the first answers breaks off
        self.busy = 0
        self.ignores_range = False
        self.shift = 0
        self.asked: list[tuple[str | None, str | None]] = []
        self.url = ""

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        if handler.path == "/api/records/10439422":
            md5 = self.md5 or hashlib.md5(self.body).hexdigest()
            files = [{"key": "other", "checksum": "md5:0"}, {"key": ARCHIVE, "checksum": f"md5:{md5}"}]
            self.send(handler, 200, json.dumps({"files": files}).encode())
        elif handler.path != f"/records/10439422/files/{ARCHIVE}":
            self.send(handler, 404, b"")
        elif self.busy:
            self.busy -= 1
            self.send(handler, 503, b"")
        else:
            self.file(handler)

    def file(self, handler: BaseHTTPRequestHandler) -> None:
        asked, tag = handler.headers["Range"], handler.headers["If-Range"]
        self.asked.append((asked, tag))
        start = 0
        if asked and not self.ignores_range and tag in (None, self.tag):
            start = int(asked.removeprefix("bytes=").partition("-")[0])
            if start >= len(self.body):
                self.send(handler, 416, b"")
                return
        cut = self.cuts.pop(0) if self.cuts else None
        headers = {"ETag": self.tag}
        if start or (asked == "bytes=0-0"):
            end = 0 if asked == "bytes=0-0" else len(self.body) - 1
            headers["Content-Range"] = f"bytes {start + self.shift}-{end}/{len(self.body)}"
            self.send(handler, 206, self.body[start : end + 1], headers, cut)
        else:
            self.send(handler, 200, self.body, headers, cut)

    @staticmethod
    def send(
        handler: BaseHTTPRequestHandler,
        status: int,
        body: bytes,
        headers: dict[str, str] | None = None,
        cut: int | None = None,
    ) -> None:
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body[:cut])


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    mirror = Mirror()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with contextlib.suppress(ConnectionError):
                mirror.answer(self)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    mirror.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield mirror
    server.shutdown()
    thread.join()
    server.server_close()


def get(mirror: Mirror, out: Path, name: str = "kuairand-1k") -> Path:
    return download(name, out, base_url=mirror.url, progress=False, wait_s=0)


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_plain_download(mirror: Mirror, tmp_path: Path) -> None:
    assert get(mirror, tmp_path / "new" / "raw") == tmp_path / "new" / "raw"
    assert (tmp_path / "new" / "raw" / "KuaiRand-1K" / "data" / "log.csv").read_bytes() == CONTENT
    assert left(tmp_path / "new") == {"raw"}
    assert mirror.asked == [(None, None)]


def test_cut_off_twice_and_resumed(mirror: Mirror, tmp_path: Path) -> None:
    mirror.cuts = [200_000, 100_000]
    get(mirror, tmp_path / "raw")
    assert mirror.asked == [(None, None), ("bytes=200000-", '"one"'), ("bytes=300000-", '"one"')]
    assert (tmp_path / "raw" / "KuaiRand-1K" / "data" / "log.csv").read_bytes() == CONTENT


def test_given_up_and_resumed_by_the_next_call(mirror: Mirror, tmp_path: Path) -> None:
    mirror.cuts = [1000] + [0] * 20
    with pytest.raises(DataError, match=rf"ended after 1000 of {len(mirror.body)} bytes; 1000 bytes are kept"):
        get(mirror, tmp_path / "raw")
    assert left(tmp_path) == {f"{ARCHIVE}.part", f"{ARCHIVE}.part.etag"}
    mirror.cuts, mirror.asked = [], []
    get(mirror, tmp_path / "raw")
    assert mirror.asked == [("bytes=1000-", '"one"')]
    assert left(tmp_path) == {"raw"}


def test_a_server_that_ignores_range_starts_over(mirror: Mirror, tmp_path: Path) -> None:
    mirror.cuts, mirror.ignores_range = [200_000], True
    get(mirror, tmp_path / "raw")
    assert [asked for asked, _ in mirror.asked] == [None, "bytes=200000-"]
    assert left(tmp_path) == {"raw"}


def test_a_file_that_changed_meanwhile_starts_over(mirror: Mirror, tmp_path: Path) -> None:
    (tmp_path / f"{ARCHIVE}.part").write_bytes(b"x" * 1000)
    (tmp_path / f"{ARCHIVE}.part.etag").write_text('"zero"')
    get(mirror, tmp_path / "raw")
    assert mirror.asked == [("bytes=1000-", '"zero"')]


def test_a_server_that_sends_another_range(mirror: Mirror, tmp_path: Path) -> None:
    mirror.cuts, mirror.shift = [200_000], 7
    get(mirror, tmp_path / "raw")
    assert [asked for asked, _ in mirror.asked] == [None, "bytes=200000-", None]


def test_a_complete_part_is_not_fetched_again(mirror: Mirror, tmp_path: Path) -> None:
    (tmp_path / f"{ARCHIVE}.part").write_bytes(mirror.body)
    get(mirror, tmp_path / "raw")
    assert [asked for asked, _ in mirror.asked] == [f"bytes={len(mirror.body)}-", "bytes=0-0"]
    assert left(tmp_path) == {"raw"}


def test_a_part_longer_than_the_file_starts_over(mirror: Mirror, tmp_path: Path) -> None:
    (tmp_path / f"{ARCHIVE}.part").write_bytes(mirror.body + b"more")
    get(mirror, tmp_path / "raw")
    assert left(tmp_path) == {"raw"}


def test_a_busy_server_is_asked_again(mirror: Mirror, tmp_path: Path) -> None:
    mirror.busy = 3
    get(mirror, tmp_path / "raw")
    mirror.busy = 100
    with pytest.raises(DataError, match="the server answered 503"):
        get(mirror, tmp_path / "again")
    assert left(tmp_path) == {"raw"}


def test_a_wrong_hash_leaves_nothing(mirror: Mirror, tmp_path: Path) -> None:
    mirror.md5 = "0" * 32
    with pytest.raises(DataError, match=rf"MD5 {hashlib.md5(mirror.body).hexdigest()}, expected {'0' * 32}"):
        get(mirror, tmp_path / "raw")
    assert left(tmp_path) == set()


def test_an_unpublished_hash_and_a_refusal(mirror: Mirror, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"names no MD5 of KuaiRand-27K\.tar\.gz"):
        get(mirror, tmp_path / "raw", "kuairand-27k")
    with pytest.raises(DataError, match="the server answered 404"):
        get(mirror, tmp_path / "raw", "kuairand-pure")


@pytest.mark.parametrize("member", ["../evil.csv", "KuaiRand-1K/../../evil.csv"])
def test_a_path_that_leaves_the_archive(mirror: Mirror, tmp_path: Path, member: str) -> None:
    mirror.body = archive(member)
    (tmp_path / "in").mkdir()
    with pytest.raises(DataError, match="a path leaves the archive"):
        get(mirror, tmp_path / "in" / "raw")
    assert left(tmp_path) == {"in"}
    assert left(tmp_path / "in") == set()


def test_a_damaged_archive(mirror: Mirror, tmp_path: Path) -> None:
    mirror.body = mirror.body[:-5000]
    with pytest.raises(DataError, match="damaged"):
        get(mirror, tmp_path / "raw")
    assert left(tmp_path) == set()


def test_no_server(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no connection"):
        download("kuairand-pure", tmp_path / "raw", base_url="http://127.0.0.1:9", progress=False, wait_s=0)


def test_progress_goes_to_standard_error(mirror: Mirror, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    download("kuairand-1k", tmp_path / "raw", base_url=mirror.url)
    out, err = capsys.readouterr()
    assert out == ""
    assert ARCHIVE in err


def test_an_existing_folder_is_kept(mirror: Mirror, tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    with pytest.raises(ArtifactError, match="already exists"):
        get(mirror, tmp_path / "raw")
    assert mirror.asked == []
    download("kuairand-1k", tmp_path / "raw", base_url=mirror.url, progress=False, overwrite=True)
    assert (tmp_path / "raw" / "KuaiRand-1K").is_dir()


def test_what_is_not_for_downloading(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"CC BY-NC-SA 4\.0"):
        download("kuaisar-r", tmp_path / "raw")
    with pytest.raises(ConfigError, match=r"grouplens\.org"):
        download("movielens-1m", tmp_path / "raw")
    with pytest.raises(ConfigError, match="use one of those names"):
        download("kuairand", tmp_path / "raw")
    with pytest.raises(ConfigError, match="expected http"):
        download("kuairand-pure", tmp_path / "raw", base_url="file:///etc")
