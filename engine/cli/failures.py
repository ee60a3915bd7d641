"""What a failed command says and returns: one sentence on standard error and the exit codes of `russet --help`."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import click
from click.exceptions import Exit

from russet.engine.errors import RussetError

EXIT_MENDABLE = 1
EXIT_FAULT = 70
EXIT_INTERRUPTED = 130


class NoteHandler(logging.Handler):
    """Shows each distinct warning of the `russet` logger once, as `russet: note: …`."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._shown: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if message not in self._shown:
            self._shown.add(message)
            click.echo(f"russet: note: {message}", err=True)


def show_notes() -> None:
    """Send the warnings of the `russet` logger to standard error; a second call starts afresh."""
    logger = logging.getLogger("russet")
    for handler in list(logger.handlers):
        if isinstance(handler, NoteHandler):
            logger.removeHandler(handler)
    logger.addHandler(NoteHandler())


@contextmanager
def failures_as_exit_codes() -> Iterator[None]:
    """Run a command; an exception becomes a sentence and click's `Exit` with the documented code."""
    leaving: Exit | None = None
    try:
        try:
            yield
        except Exit as error:
            leaving = error
        sys.stdout.flush()  # here, where a closed pipe or a full disk can still be told
        if leaving is not None:
            raise leaving
    except (click.ClickException, Exit):
        raise
    except (KeyboardInterrupt, click.Abort):
        if sys.stderr.isatty():
            click.echo(err=True)  # ends the line on which the terminal showed ^C
        raise Exit(EXIT_INTERRUPTED) from None
    except BrokenPipeError:
        _drop_output()
        raise Exit(0) from None
    except Exception as error:
        raise Exit(_report(error)) from None


def _report(error: Exception) -> int:
    """Print what went wrong and return the exit code."""
    with suppress(OSError):
        sys.stdout.flush()
    if os.environ.get("RUSSET_TRACEBACK"):
        traceback.print_exception(error)
    if isinstance(error, RussetError):
        click.echo(f"russet: {error}", err=True)
        return EXIT_MENDABLE
    if isinstance(error, OSError):
        _drop_output()
        place = f"{error.filename}: " if error.filename else ""
        click.echo(f"russet: {place}{error.strerror or error}", err=True)
        return EXIT_MENDABLE
    summary = (str(error).splitlines() or ["no message"])[0]
    click.echo(
        f"russet: unexpected {type(error).__name__} ({summary}): this is a fault in Russet; "
        "set RUSSET_TRACEBACK=1 and run again to see where, and please report it.",
        err=True,
    )
    return EXIT_FAULT


def _drop_output() -> None:
    """Point standard output at nothing, so that the interpreter's last flush cannot fail again."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
