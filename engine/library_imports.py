"""Import libraries that swallow a Ctrl-C: those that try parts of themselves, and go on without what fails."""

from __future__ import annotations

import importlib
import signal
import threading
from types import ModuleType


def import_library(name: str) -> ModuleType:
    """Import the module `name`; a Ctrl-C in the meantime is raised behind it, as KeyboardInterrupt."""
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return importlib.import_module(name)
    asked: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: asked.append(number))
    try:
        module = importlib.import_module(name)
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if asked:
            raise KeyboardInterrupt
    return module
