"""Standard output and standard error that whoever started the command closed."""

from __future__ import annotations

import os
import sys
from contextlib import suppress


def open_closed_streams() -> None:
    """Let each that is closed lead to nothing.

    Python has None in its place, which no caller expects, and the next file to be opened would get its number, and with
    it what libraries print past Python.
    """
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is not None:
            continue
        nowhere = os.open(os.devnull, os.O_WRONLY)
        if nowhere != number and not _is_open(number):
            os.dup2(nowhere, number)
            os.close(nowhere)
            nowhere = number
        setattr(sys, name, os.fdopen(nowhere, "w", encoding="utf-8", closefd=False))


def _is_open(number: int) -> bool:
    with suppress(OSError):
        os.fstat(number)
        return True
    return False
