from __future__ import annotations

import errno
import hashlib
from pathlib import Path

import pytest

from russet.engine.errors import DownloadError, StorageError
from russet.models.transfer import download, open_url

CONTENT = bytes(range(256)) * 4000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Tally:
    """A progress listener that remembers."""

    def __init__(self) -> None:
        self.tasks: list[tuple[str, int | None]] = []
        self.done = 0
        self.finished = 0

    def start(self, label: str, total: int | None) -> None:
        self.tasks.append((label, total))

    def advance(self, n: int) -> None:
        self.done += n

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture
def dst(server, tmp_path) -> Path:
    server.files["/f.bin"] = CONTENT
    return tmp_path / "f.bin"


def fetch(server, dst: Path, sha256: str = SHA256, nbytes: int = len(CONTENT)) -> Tally:
    tally = Tally()
    download(f"{server.url}/f.bin", dst, nbytes=nbytes, sha256=sha256, progress=tally)
    return tally


def left(dst: Path) -> list[str]:
    return sorted(path.name for path in dst.parent.iterdir())


def test_a_file_arrives_whole_and_is_reported(server, dst):
    tally = fetch(server, dst)
    assert dst.read_bytes() == CONTENT
    assert left(dst) == ["f.bin"]
    assert (tally.tasks, tally.done, tally.finished) == ([("f.bin", len(CONTENT))], len(CONTENT), 1)


def test_cut_connections_are_resumed(server, dst):
    server.cuts = [100_000, 0, 300_001]
    tally = fetch(server, dst)
    assert dst.read_bytes() == CONTENT
    assert [wanted for _, wanted in server.requests] == [None, "bytes=100000-", "bytes=100000-", "bytes=400001-"]
    assert tally.done == len(CONTENT)


def test_a_later_call_goes_on_where_an_earlier_one_gave_up(server, dst):
    server.cuts = [200_000, 0, 0, 0, 0]
    with pytest.raises(DownloadError, match="200000 of 1024000 bytes are kept"):
        fetch(server, dst)
    assert left(dst) == ["f.bin.part"]
    tally = fetch(server, dst)
    assert server.requests[-1][1] == "bytes=200000-"
    assert dst.read_bytes() == CONTENT
    assert left(dst) == ["f.bin"]
    assert tally.done == len(CONTENT)


def test_a_server_without_ranges_still_completes_a_partial_file(server, dst):
    server.ranges = False
    server.cuts = [500_000]
    tally = fetch(server, dst)
    assert dst.read_bytes() == CONTENT
    assert tally.done == len(CONTENT)


def test_a_partial_file_that_is_too_long_is_started_again(server, dst):
    dst.with_name("f.bin.part").write_bytes(b"x" * (len(CONTENT) + 1))
    fetch(server, dst)
    assert dst.read_bytes() == CONTENT


def test_a_wrong_hash_leaves_nothing(server, dst):
    with pytest.raises(DownloadError, match=r"f\.bin has SHA-256 .*, not the 000000000000… that was expected"):
        fetch(server, dst, sha256="0" * 64)
    assert left(dst) == []


def test_a_refusal_is_not_asked_again(server, dst):
    del server.files["/f.bin"]
    with pytest.raises(DownloadError, match="answered 404"):
        fetch(server, dst)
    assert len(server.requests) == 1


def test_a_closed_port_is_told_in_words(dst):
    with pytest.raises(DownloadError, match=r"127\.0\.0\.1:9 cannot be reached \(Connection refused\)"):
        open_url("http://127.0.0.1:9/x")


def test_a_full_disk_is_one_sentence_and_leaves_only_what_can_be_resumed(server, dst, monkeypatch):
    open_file = Path.open

    class Full:
        def __init__(self, file):
            self.file = file

        def __getattr__(self, name):
            return getattr(self.file, name)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, block):
            self.file.write(block[:1000])
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(
        Path, "open", lambda path, mode="r": Full(open_file(path, mode)) if mode == "ab" else open_file(path, mode)
    )
    with pytest.raises(StorageError, match=r"^The disk of .* is full: free some space and try again, or "):
        fetch(server, dst)
    assert left(dst) == ["f.bin.part"]
    monkeypatch.undo()
    monkeypatch.setattr("russet.models.transfer._PAUSE_S", 0.0)
    fetch(server, dst)
    assert server.requests[-1][1] == "bytes=1000-"
    assert dst.read_bytes() == CONTENT


def test_without_room_nothing_is_asked_for(server, dst):
    with pytest.raises(StorageError, match=r"has .* free but .* are needed: free some space"):
        fetch(server, dst, nbytes=1 << 60)
    assert server.requests == []
    assert left(dst) == []


def test_the_password_of_an_address_is_sent(server, dst):
    server.password = "Basic bWU6cCBx"  # me:p q
    address = server.url.replace("http://", "http://me:p%20q@")
    assert open_url(f"{address}/f.bin").read() == CONTENT
    with pytest.raises(DownloadError, match=r"^127\.0\.0\.1:\d+ answered 401"):
        open_url(address.replace("q@", "x@") + "/f.bin")


def test_only_http_is_opened(tmp_path):
    with pytest.raises(DownloadError, match="not an http address"):
        open_url((tmp_path / "x").as_uri())
