"""How a reply is shown while it streams: bare text, or Markdown whose unfinished end alone is redrawn."""

from __future__ import annotations

import os
import re
import sys
from typing import TYPE_CHECKING, Protocol

from russet.engine.cli.console import printable
from russet.engine.timing import now

if TYPE_CHECKING:
    from rich.console import Console

    from russet.engine.cli.markdown import Block

STYLE_CODE = re.compile(r"\x1b\[[0-9;]*m")


class ReplyView(Protocol):
    """Shows one reply: any number of `feed`, then `finish`, which leaves the cursor on a new line."""

    def feed(self, text: str) -> None: ...

    def finish(self) -> None: ...


def reply_view(*, plain: bool = False) -> ReplyView:
    """Markdown where standard output is a capable terminal and `plain` is not set, otherwise text."""
    on_terminal = sys.stdout.isatty()
    if plain or not on_terminal or os.environ.get("TERM") in (None, "", "dumb"):
        return PlainView(on_terminal)
    from rich.console import Console

    return MarkdownView(Console(highlight=False))


class PlainView:
    """Text as it comes, ended by a newline if there is any; towards a terminal, without control characters."""

    def __init__(self, on_terminal: bool) -> None:
        self._on_terminal = on_terminal
        self._last = "\n"

    def feed(self, text: str) -> None:
        text = printable(text) if self._on_terminal else text
        if text:
            _write(text)
            self._last = text[-1]

    def finish(self) -> None:
        if self._last != "\n":
            _write("\n")


def _write(text: str) -> None:
    """Unlike `click.echo`, this leaves escape codes in a pipe: they are part of the reply."""
    sys.stdout.write(text)
    sys.stdout.flush()


class MarkdownView:
    """Markdown on a terminal. Finished blocks are printed for good, the last one is redrawn until it is finished.

    A block taller than the screen shows its end while it grows and is printed whole when it is finished, so that
    the scrollback holds every line once.
    """

    MIN_INTERVAL_S: float = 0.08
    REST: int = 10  # times as long as a drawing took passes before the next one: the model needs the time

    def __init__(self, console: Console) -> None:
        self._console = console
        self._pending = ""
        self._previous: Block | None = None  # the last block that was printed for good
        self._rows: list[str] = []  # what is on the screen and may still change
        self._next_draw = 0.0

    def feed(self, text: str) -> None:
        from russet.engine.cli.markdown import finished_blocks, split_blocks

        self._pending += printable(text)
        begun = now()
        if begun < self._next_draw:
            return
        done, self._pending = finished_blocks(self._pending, self._previous)
        done_rows = self._render(done)
        self._previous = done[-1] if done else self._previous
        live_rows = self._render(split_blocks(self._pending, self._previous))
        self._paint(done_rows, live_rows[-max(1, self._console.height - 2) :])
        spent = now() - begun
        self._next_draw = begun + max(self.MIN_INTERVAL_S, spent * self.REST)

    def finish(self) -> None:
        from russet.engine.cli.markdown import split_blocks

        self._paint(self._render(split_blocks(self._pending, self._previous)), [])

    def _render(self, blocks: list[Block]) -> list[str]:
        """The rows of these blocks, a blank one before each that is not a further item of a list."""
        from russet.engine.cli.markdown import BlockMarkdown

        previous = self._previous
        rows: list[str] = []
        for block in blocks:
            if previous is not None and not block.follows(previous):
                rows.append("")
            with self._console.capture() as capture:
                self._console.print(BlockMarkdown(block))
            rows += _without_blank_ends(capture.get().splitlines())
            previous = block
        return rows

    def _paint(self, done: list[str], live: list[str]) -> None:
        """Replace the rows that may change, in one write that leaves alone those which stay as they are."""
        rows = [*done, *live]
        same = 0
        while same < min(len(rows), len(self._rows)) and rows[same] == self._rows[same]:
            same += 1
        back = len(self._rows) - same
        move = f"\x1b[{back}F\x1b[J" if back else ""
        self._console.file.write(move + "".join(row + "\n" for row in rows[same:]))
        self._console.file.flush()
        self._rows = live


def _without_blank_ends(rows: list[str]) -> list[str]:
    """rich sets lists and code off from their neighbours; between blocks that is done here."""
    shown = [i for i, row in enumerate(rows) if STYLE_CODE.sub("", row).strip()]
    return rows[shown[0] : shown[-1] + 1] if shown else []
