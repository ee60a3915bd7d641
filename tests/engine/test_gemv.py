"""The compiled part of the BLAS redirection: made once, kept, and never somebody else's."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from russet.engine import gemv

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="macOS has Accelerate"),
    pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="there is no C compiler"),
]


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("RUSSET_CACHE", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    return tmp_path


def test_it_is_compiled_once(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    first = gemv._compiled()
    monkeypatch.setattr(gemv.subprocess, "run", lambda *_, **__: pytest.fail("it was compiled again"))
    assert gemv._compiled() == first
    assert list((cache / "compiled").iterdir()) == [first]


def test_a_file_of_another_user_is_not_loaded(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    planted = gemv._compiled()
    planted.write_bytes(b"planted")
    owner = planted.stat().st_uid
    monkeypatch.setattr(gemv.os, "getuid", lambda: owner + 1)
    assert gemv._compiled().read_bytes().startswith(b"\x7fELF")


def test_a_changed_source_is_compiled_anew(monkeypatch: pytest.MonkeyPatch, cache: Path, tmp_path: Path) -> None:
    first = gemv._compiled()
    changed = tmp_path / "gemv.c"
    changed.write_text(gemv._SOURCE.read_text() + "\nint more;\n")
    monkeypatch.setattr(gemv, "_SOURCE", changed)
    assert gemv._compiled() != first
