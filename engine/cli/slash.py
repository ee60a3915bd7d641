"""The commands of a chat that begin with a slash."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from russet.engine.cli.console import aside, stats_line
from russet.engine.cli.conversation import Conversation
from russet.engine.errors import InvalidOptionError, OutputExistsError


@dataclass(frozen=True)
class SlashCommand:
    """`argument` is "" for none, "[TEXT]" for an optional one, "PATH" for one that must be there."""

    run: Callable[[Conversation, str], None]
    argument: str
    help: str


def is_slash_command(text: str) -> bool:
    """Whether the text is a command: a slash and one word, so that `/usr/bin` is a message."""
    return re.match(r"/[^\s/]*(\s|$)", text) is not None


def run_slash_command(chat: Conversation, text: str) -> None:
    """Raises InvalidOptionError for an unknown command or a wrong argument, and what the command raises."""
    name, _, argument = text.strip().partition(" ")
    argument = argument.strip()
    command = COMMANDS.get(name)
    if command is None:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        advice = f"did you mean {near[0]}?" if near else "/help lists the commands."
        raise InvalidOptionError(f"There is no command {name}; {advice}")
    if argument and not command.argument:
        raise InvalidOptionError(f"{name} takes no argument, but was given {argument!r}.")
    if not argument and command.argument == "PATH":
        raise InvalidOptionError(f"{name} needs a file, as in {name} talk.russet.")
    command.run(chat, argument)


def _help(chat: Conversation, argument: str) -> None:
    rows = [(f"{name} {command.argument}", command.help) for name, command in COMMANDS.items()]
    rows += [
        ('"""', "begins and ends a message of several lines"),
        ("Alt-Enter, Ctrl-J", "start a new line"),
        ("Ctrl-C", "stops the reply, or clears the line; twice leaves"),
        ("Ctrl-D", "leaves"),
    ]
    width = max(len(name) for name, _ in rows)
    aside("\n".join(f"{name:{width}}  {text}" for name, text in rows))


def _clear(chat: Conversation, argument: str) -> None:
    chat.session.clear()
    chat.last_reply = None
    aside("The conversation starts afresh.")


def _system(chat: Conversation, argument: str) -> None:
    session = chat.session
    if not argument:
        aside(f"System prompt: {session.system}" if session.system else "There is no system prompt.")
        return
    said = [message for message in session.messages if message["role"] != "system"]
    session.messages = [{"role": "system", "content": argument}, *said]
    aside("The system prompt holds from the next reply on.")


def _regen(chat: Conversation, argument: str) -> None:
    if not any(message["role"] == "user" for message in chat.session.messages):
        raise InvalidOptionError("There is no reply to make again yet.")
    chat.regenerate()


def _save(chat: Conversation, argument: str) -> None:
    path = Path(argument).expanduser()
    if path.exists() and path != chat.file:
        raise OutputExistsError(f"{path} exists already; choose another name, or delete it first.")
    chat.session.save(path)
    chat.file = path
    aside(f"Saved {_count(chat)} to {path}.")


def _load(chat: Conversation, argument: str) -> None:
    path = Path(argument).expanduser()
    chat.session = chat.model.load_session(path, options=chat.session.options, prefill=chat.session.prefill)
    chat.file = path
    chat.last_reply = None
    aside(f"Loaded {_count(chat)} from {path}.")


def _stats(chat: Conversation, argument: str) -> None:
    lines = [
        f"Model: {chat.model.name}",
        f"Conversation: {_count(chat)}, {chat.session.cached_tokens} of {chat.model.max_positions} positions cached",
        f"Generated: {chat.generated} tokens",
    ]
    if chat.last_reply is not None:
        lines.append(f"Last reply: {stats_line(chat.last_reply)}")
    aside("\n".join(lines))


def _exit(chat: Conversation, argument: str) -> None:
    chat.leaving = True


def _count(chat: Conversation) -> str:
    n = sum(message["role"] != "system" for message in chat.session.messages)
    return f"{n} message" if n == 1 else f"{n} messages"


COMMANDS = {
    "/help": SlashCommand(_help, "", "lists the commands and keys"),
    "/clear": SlashCommand(_clear, "", "forgets the conversation, keeps the system prompt"),
    "/system": SlashCommand(_system, "[TEXT]", "shows or sets the system prompt"),
    "/regen": SlashCommand(_regen, "", "replaces the last reply by another one"),
    "/save": SlashCommand(_save, "PATH", "saves the conversation to a file"),
    "/load": SlashCommand(_load, "PATH", "goes on with a saved conversation"),
    "/stats": SlashCommand(_stats, "", "shows the size of the conversation and the last timings"),
    "/exit": SlashCommand(_exit, "", "leaves"),
}
