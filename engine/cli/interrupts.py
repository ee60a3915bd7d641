"""Ctrl-C while a reply is on its way."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

if sys.platform != "win32":
    import termios


class ReplyInterrupt:
    """Between `with` and its end, the first Ctrl-C asks for a stop instead of raising.

    Until `started` is set there is no reply to keep, only a prefill that may be long: then, and at a second Ctrl-C,
    KeyboardInterrupt is raised at once.
    """

    def __init__(self) -> None:
        self.started = False
        self.requested = False

    def __enter__(self) -> ReplyInterrupt:
        self._previous = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._previous)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.requested or not self.started:
            raise KeyboardInterrupt
        self.requested = True


@contextmanager
def quiet_keyboard() -> Iterator[None]:
    """Keep keys that are typed during a reply off the screen; they wait for the next prompt. Ctrl-C still works."""
    if sys.platform == "win32" or sys.stdin is None or not sys.stdin.isatty():
        yield
        return
    keyboard = sys.stdin.fileno()
    before = termios.tcgetattr(keyboard)
    quiet = list(before)
    quiet[0] &= ~termios.ICRNL  # Enter arrives at the prompt as Enter
    quiet[3] &= ~(termios.ECHO | termios.ICANON)
    termios.tcsetattr(keyboard, termios.TCSADRAIN, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(keyboard, termios.TCSADRAIN, before)
