"""Text that is piped into a command."""

from __future__ import annotations

import logging
import select
import sys

from russet.engine.errors import PromptEncodingError

PATIENCE_S = 2.0


def piped_text() -> str | None:
    """All of standard input, or None where that is a terminal or closed.

    Says so after two seconds of silence: a program that starts Russet may have left the pipe open by accident.
    Raises PromptEncodingError for bytes that are not UTF-8.
    """
    if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty():
        return None
    if not _input_waits():
        logging.getLogger("russet").warning(
            "Waiting for text on standard input; close it, or use < /dev/null, if there is none."
        )
    return utf8_text(sys.stdin.buffer.read(), "Standard input")


def utf8_text(data: bytes, source: str) -> str:
    """Text out of bytes, without a byte order mark. Raises PromptEncodingError, which names the source."""
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise PromptEncodingError(
            f"{source} is not UTF-8 text (byte 0x{data[error.start]:02x} at offset {error.start}); "
            "convert it first, for instance with iconv."
        ) from None


def _input_waits() -> bool:
    try:
        return bool(select.select([sys.stdin.fileno()], [], [], PATIENCE_S)[0])
    except (OSError, ValueError):  # not a real file, as in tests, so reading does not wait
        return True
