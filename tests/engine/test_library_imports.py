from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from russet.engine.library_imports import import_library

SWALLOWS = """
import os, signal
try:
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(1000):
        pass
except BaseException:
    caught = True
"""


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A module that is interrupted while it is imported, and would go on as if nothing had been."""
    (tmp_path / "swallows.py").write_text(SWALLOWS)
    (tmp_path / "fails.py").write_text(SWALLOWS + "raise ImportError")
    monkeypatch.syspath_prepend(str(tmp_path))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)
    for name in ("swallows", "fails"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", ["swallows", "fails"])
def test_an_interrupt_outlasts_the_library(library, name: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        import_library(name)


def test_whoever_handles_interrupts_goes_on_to(library) -> None:
    seen = []
    signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
    try:
        assert import_library("swallows").__name__ == "swallows"
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    assert seen == [signal.SIGINT]


def test_a_module_is_imported_as_always(library) -> None:
    assert import_library("json") is sys.modules["json"]
