"""The line that the user types in a chat: several lines, history, completion, and what Ctrl-C means there."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.input import Input
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import Output, create_output
from prompt_toolkit.shortcuts import CompleteStyle

from russet.engine.cli.slash import COMMANDS

QUOTES = '"""'
HINT = "Ask something. /help lists the commands."
LEAVING_HINT = "Ctrl-C again leaves."

logger = logging.getLogger("russet")


class PromptReader:
    """Reads one message at a time.

    Enter sends; Alt-Enter, Ctrl-J, a pasted line break and an open `\"\"\"` block add a line. The first Ctrl-C clears
    the line, a second one in a row raises KeyboardInterrupt; Ctrl-D on an empty line raises EOFError.
    """

    def __init__(self, history: History, input: Input | None = None, output: Output | None = None) -> None:
        self.interrupted = False  # the next Ctrl-C leaves
        self._session: PromptSession[str] = PromptSession(
            message=FormattedText([("bold", "> ")]),
            prompt_continuation=FormattedText([("ansibrightblack", ". ")]),
            placeholder=self._placeholder,
            multiline=True,
            key_bindings=self._bindings(),
            completer=SlashCompleter(),
            complete_while_typing=False,
            complete_style=CompleteStyle.READLINE_LIKE,
            history=history,
            input=input,
            output=output or create_output(always_prefer_tty=True),
        )

    def read(self) -> str:
        """The next message, without the quotes of a `\"\"\"` block."""
        text = self._session.prompt()
        self.interrupted = False
        return unquoted(text)

    def _placeholder(self) -> FormattedText:
        if get_app().is_done:  # what stays on the screen holds no hint
            return FormattedText()
        return FormattedText([("ansibrightblack", LEAVING_HINT if self.interrupted else HINT)])

    def _bindings(self) -> KeyBindings:
        bindings = KeyBindings()

        @bindings.add("enter")
        def send_or_continue(event: KeyPressEvent) -> None:
            buffer = event.current_buffer
            if block_is_open(buffer.text):
                buffer.insert_text("\n")
            else:
                buffer.validate_and_handle()

        @bindings.add("escape", "enter")
        @bindings.add("c-j")
        def add_line(event: KeyPressEvent) -> None:
            event.current_buffer.insert_text("\n")

        @bindings.add("c-c")
        @bindings.add("<sigint>")
        def clear_or_leave(event: KeyPressEvent) -> None:
            buffer = event.current_buffer
            if self.interrupted and not buffer.text:
                event.app.exit(exception=KeyboardInterrupt)
            buffer.reset()
            self.interrupted = True

        return bindings


class SlashCompleter(Completer):
    """Completes the names of slash commands, and paths after those that take one."""

    def __init__(self) -> None:
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        text = document.text_before_cursor
        if not text.startswith("/") or "\n" in text:
            return
        name, space, argument = text.partition(" ")
        if not space:
            for command in COMMANDS:
                if command.startswith(name):
                    yield Completion(command, start_position=-len(name))
        elif name in COMMANDS and COMMANDS[name].argument == "PATH":
            yield from self._paths.get_completions(Document(argument), complete_event)


class PrivateHistory(FileHistory):
    """A history file that only its owner can read; a failure to write it costs a note, not the chat."""

    def __init__(self, path: Path) -> None:
        """Raises OSError where the file cannot be made."""
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
        path.chmod(0o600)
        super().__init__(str(path))

    def store_string(self, string: str) -> None:
        try:
            super().store_string(string)
        except OSError as error:
            logger.warning("What you type is not kept in the history file: %s.", error.strerror)


def open_history(path: Path | None) -> History:
    """The history in this file, or one that ends with the process where there is none or it cannot be written."""
    if path is None:
        return InMemoryHistory()
    try:
        return PrivateHistory(path)
    except OSError as error:
        logger.warning("What you type is not kept, because %s cannot be written: %s.", path, error.strerror)
        return InMemoryHistory()


def block_is_open(text: str) -> bool:
    """Whether the text begins a `\"\"\"` block that is not closed yet."""
    return text.startswith(QUOTES) and not (len(text) >= 6 and text.rstrip().endswith(QUOTES))


def unquoted(text: str) -> str:
    """The inside of a `\"\"\"` block, or the text as it is."""
    if text.startswith(QUOTES) and not block_is_open(text):
        return text.rstrip()[len(QUOTES) : -len(QUOTES)].strip("\n")
    return text
