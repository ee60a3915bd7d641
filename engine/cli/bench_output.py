"""What the benchmarks' commands share: where results go, and what is shown while they run."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import click

from russet.engine.errors import StorageError

if TYPE_CHECKING:
    from russet.bench.decode import Listener


def json_option(what: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """--json, as the parameter `json_file`: "-" where it stands alone, None where it is left out."""
    return click.option(
        "--json",
        "json_file",
        is_flag=False,
        flag_value="-",
        metavar="[FILE]",
        help=f"Write {what} as JSON to FILE, or to standard output in place of the table.",
    )


def check_writable(file: str | None) -> None:
    """Raise StorageError, before any work, where a result could not be written; "-" is standard output."""
    if file in (None, "-"):
        return
    path = Path(file)
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise StorageError(f"{path} cannot be written; name a file in a folder that exists and can be written to.")


def write_json(report: dict[str, Any], file: str, indent: int | None = 1) -> None:
    """Write a report to a file, or to standard output for "-"."""
    text = json.dumps(report, indent=indent, ensure_ascii=False, allow_nan=False)
    with click.open_file(file, "w", encoding="utf-8") as stream:
        stream.write(text + "\n")


@contextmanager
def listener(total: int | None = None) -> Iterator[Listener]:
    """Show on a terminal what runs, and of how many steps if that is known, in one line that is wiped at the end.

    Elsewhere nothing is shown. The line is drawn anew with every step and never in between, when something is timed.
    """
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich import progress
    from rich.console import Console

    counted = (progress.BarColumn(), progress.MofNCompleteColumn()) if total else ()
    columns = (progress.TextColumn("{task.description}", markup=False), *counted, progress.TimeElapsedColumn())
    columns += (progress.TextColumn("left:"), progress.TimeRemainingColumn()) if total else ()
    with progress.Progress(
        *columns, console=Console(stderr=True), transient=True, auto_refresh=False, speed_estimate_period=600
    ) as bars:
        task = bars.add_task("", total=total)
        begun = False

        def listen(text: str) -> None:
            nonlocal begun
            bars.update(task, advance=1 if begun else 0, description=text, refresh=True)
            begun = True

        yield listen


class Interruptible(Protocol):
    """A report that says whether it was cut short, and what it holds all the same."""

    interrupted: bool

    @property
    def finished(self) -> Any: ...


def fill_and_publish(
    report: Interruptible, fill: Callable[[Listener], None], publish: Callable[[], None], steps: int | None = None
) -> None:
    """Fill a report and publish it; what was finished is published also where the rest fails or is interrupted.

    `steps` is how many times `fill` tells its listener what comes next.
    """
    try:
        with listener(steps) as listen:
            fill(listen)
    except BaseException as error:
        report.interrupted = True
        if report.finished:
            publish()
        elif isinstance(error, KeyboardInterrupt):
            begin = "\n" if sys.stderr.isatty() else ""  # after the line on which the terminal showed ^C
            click.echo(f"{begin}Interrupted before the first result, so there is nothing to show.", err=True)
        raise
    publish()
