from __future__ import annotations

import errno
import threading
from types import SimpleNamespace

import pytest

from russet.engine.errors import StorageError
from russet.engine.storage import exclusive, folder_bytes, make_folder, readable_bytes, require_space, writing


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_told_as_such(tmp_path, code):
    with pytest.raises(StorageError, match=rf"^The disk of {tmp_path} is full: "), writing(tmp_path):
        raise OSError(code, "whatever")


def test_another_fault_names_the_file(tmp_path):
    with (
        pytest.raises(StorageError, match=r"f cannot be written \(Is a directory\): .* another place"),
        writing(tmp_path),
    ):
        make_folder(tmp_path / "f")
        (tmp_path / "f").write_text("")


def test_other_errors_pass():
    with pytest.raises(KeyError), writing(None):  # type: ignore[arg-type]
        raise KeyError


def test_a_folder_in_the_place_of_a_file_is_told(tmp_path):
    (tmp_path / "f").write_text("")
    assert make_folder(tmp_path / "a" / "b").is_dir()
    with pytest.raises(StorageError, match="cannot be written"):
        make_folder(tmp_path / "f" / "b")


def test_some_space_stays_free(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=100_000_000))
    require_space(tmp_path, 30_000_000)
    with pytest.raises(StorageError, match=r"has 100\.0 MB free but 107\.1 MB are needed"):
        require_space(tmp_path, 40_000_000)


def test_the_second_waits_for_the_first(tmp_path, caplog):
    order, started = [], threading.Event()

    def first():
        with exclusive(tmp_path / "x.lock"):
            started.set()
            while not caplog.records:  # until the second has said that it waits
                pass
            order.append("first")

    thread = threading.Thread(target=first)
    thread.start()
    started.wait()
    with exclusive(tmp_path / "x.lock"):
        order.append("second")
    thread.join()
    assert order == ["first", "second"]
    assert [record.getMessage() for record in caplog.records] == [
        "another process prepares the same model; waiting for it"
    ]


def test_sizes_are_read_by_people():
    sizes = [0, 999, 1000, 98_362_432, 2_500_000_000_000]
    assert [readable_bytes(size) for size in sizes] == ["0 B", "999 B", "1.0 kB", "98.4 MB", "2500.0 GB"]


def test_links_do_not_count(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_bytes(b"12345")
    (tmp_path / "y").symlink_to(tmp_path / "a" / "x")
    assert folder_bytes(tmp_path) == 5
