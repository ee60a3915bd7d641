"""A conversation in the terminal: its session, what is shown of a reply, and what Ctrl-C does to it."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from russet.engine.cli.console import aside, stats_line
from russet.engine.cli.interrupts import ReplyInterrupt, quiet_keyboard
from russet.engine.cli.prefill import show_note
from russet.engine.cli.replies import ReplyView

if TYPE_CHECKING:
    from russet.engine.api import Model
    from russet.engine.reply import Piece, Reply
    from russet.engine.session import Session


@dataclass
class Conversation:
    """What the slash commands act on. `options` are the sampling options that every reply is made with."""

    model: Model
    session: Session
    options: dict[str, Any]
    view: Callable[[], ReplyView]
    show_stats: bool
    last_reply: Reply | None = None
    generated: int = 0  # tokens of all replies so far
    file: Path | None = None  # where it was saved to or loaded from
    interrupted: bool = False  # Ctrl-C cut the last reply short
    leaving: bool = False
    noted: bool = False  # that the prefill strategy did not apply was said once

    def answer(self, text: str) -> None:
        """Show the reply to `text`; Ctrl-C cuts it short and keeps what was said.

        Raises KeyboardInterrupt at a second Ctrl-C, and what the engine raises.
        """
        self._show(self.session.stream(text, **self.options))

    def regenerate(self) -> None:
        """Replace the last reply by another one; raises as `answer` does."""
        self._show(self.session.regenerate(**self.options))

    def _show(self, pieces: Generator[Piece, None, None]) -> None:
        with ReplyInterrupt() as interrupt, quiet_keyboard():
            try:
                self._show_pieces(pieces, interrupt)
            except KeyboardInterrupt:
                if interrupt.requested:
                    raise
                interrupt.requested = True
        self.interrupted = interrupt.requested
        self.last_reply = self.session.last_reply
        if self.last_reply is not None:
            self.generated += len(self.last_reply.tokens)
            if not self.noted:
                show_note(self.last_reply.note)
                self.noted = bool(self.last_reply.note)
        if self.show_stats:
            aside(stats_line(self.last_reply) if self.last_reply is not None else "stopped: interrupted")

    def _show_pieces(self, pieces: Generator[Piece, None, None], interrupt: ReplyInterrupt) -> None:
        view = self.view()
        try:
            with closing(pieces):
                for piece in pieces:
                    interrupt.started = True
                    view.feed(piece.text)
                    if interrupt.requested:
                        break
        finally:
            view.finish()
