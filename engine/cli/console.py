"""What the commands say on a terminal beside the reply itself: progress, dim asides, the stats line.

All of it goes to standard error, so that standard output holds nothing but the reply.
"""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from russet.engine.progress import Progress, SilentProgress
from russet.engine.storage import readable_bytes

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    from russet.engine.reply import Reply

NO_BREAK = "\u00a0"


class RichProgress:
    """A progress bar with size, rate and time left, drawn by rich; rich is imported at the first task."""

    def __init__(self) -> None:
        self._bars: Bars | None = None
        self._task: TaskID | None = None

    def start(self, label: str, total: int | None) -> None:
        self.finish()
        self._bars = _bars()
        self._bars.start()
        self._task = self._bars.add_task(label, total=total)

    def advance(self, n: int) -> None:
        if self._bars is not None and self._task is not None:
            self._bars.advance(self._task, n)

    def finish(self) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = self._task = None


def _bars() -> Bars:
    from rich import progress
    from rich.console import Console

    return progress.Progress(
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )


class LineProgress(SilentProgress):
    """For logs and pipes: says once what is being waited for, where it is large."""

    LARGE_BYTES = 50_000_000

    def start(self, label: str, total: int | None) -> None:
        if total and total >= self.LARGE_BYTES:
            click.echo(f"russet: {label}, {readable_bytes(total)}", err=True)


@contextmanager
def terminal_progress() -> Iterator[Progress]:
    """Progress bars where standard error is a terminal, lines elsewhere; an open bar is closed on the way out."""
    progress = RichProgress() if sys.stderr.isatty() else LineProgress()
    try:
        yield progress
    finally:
        progress.finish()


def aside(text: str) -> None:
    """Print dim text, such as the model card, to standard error, wrapped at words but not at no-break spaces."""
    width = shutil.get_terminal_size().columns
    lines = [textwrap.fill(line, width, break_on_hyphens=False) for line in printable(text).splitlines()]
    click.secho("\n".join(lines).replace(NO_BREAK, " "), dim=True, err=True)


def printable(text: str) -> str:
    """`text` without the control characters by which a reply could steer the terminal; newline and tab stay."""
    return text.translate(_CONTROLS)


_CONTROLS = dict.fromkeys([*range(0x09), *range(0x0B, 0x20), *range(0x7F, 0xA0)])


def stats_line(reply: Reply) -> str:
    """For example `412 tok | TTFT 0.21 s | prefill 3 120 tok/s | decode 61.4 tok/s | cached 380 | 2.1 GB`.

    A rate that was not measured, such as the decode rate of a single token, is left out. The spaces within a part
    are no-break ones, for `aside`.
    """
    timings = reply.timings
    parts = [
        f"{len(reply.tokens)} tok",
        f"TTFT {timings.ttft_s:.2f} s",
        _rate("prefill", timings.prefill_tps),
        _rate("decode", timings.decode_tps),
        f"cached {timings.cached_tokens}" if timings.cached_tokens else "",
        readable_bytes(reply.peak_memory_bytes),
        "" if reply.exact else "approximate",
        "" if reply.finish_reason == "stop" else f"stopped: {reply.finish_reason}",
    ]
    return " | ".join(part.replace(" ", NO_BREAK) for part in parts if part)


def _rate(name: str, per_second: float) -> str:
    if per_second <= 0:
        return ""
    number = f"{per_second:.1f}" if per_second < 100 else f"{per_second:,.0f}".replace(",", " ")
    return f"{name} {number} tok/s"
