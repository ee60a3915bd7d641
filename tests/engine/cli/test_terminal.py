"""The conversation on a pseudo-terminal, typed key by key."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import stat
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Iterator

import pytest

CONTROL = re.compile(r"\x1b(\[[0-9;?]*[A-Za-z]|\][^\x1b\x07]*(\x1b\\|\x07)|[=>])|\r")
PROMPT = "Ask something"
ENTER, CTRL_C, CTRL_D = "\r", "\x03", "\x04"


class Terminal:
    """A process whose standard streams are an 80 by 24 terminal."""

    def __init__(self, start: Callable[..., subprocess.Popen[str]], *arguments: str) -> None:
        self._keyboard, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        streams = {"stdin": slave, "stdout": slave, "stderr": slave}
        self.process = start(*arguments, **streams, preexec_fn=lambda: _control(slave))
        os.close(slave)
        self.raw = ""

    def type(self, text: str) -> None:
        os.write(self._keyboard, text.encode())

    def wait_for(self, text: str, timeout_s: float = 20) -> str:
        """What was shown up to `text`, without control codes; it is then forgotten."""
        deadline = time.monotonic() + timeout_s
        while text not in (shown := CONTROL.sub("", self.raw)):
            if not self._read(deadline - time.monotonic()):
                raise AssertionError(f"{text!r} was not shown, but {shown!r}")
        self.raw = shown.partition(text)[2]
        return shown.partition(text)[0]

    def leave(self, timeout_s: float = 20) -> int:
        """The exit code, once everything is read."""
        deadline = time.monotonic() + timeout_s
        while self._read(deadline - time.monotonic()):
            pass
        return self.process.wait(timeout=timeout_s)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._keyboard)

    def _read(self, timeout_s: float) -> bool:
        if not select.select([self._keyboard], [], [], max(0.0, timeout_s))[0]:
            return False
        try:
            data = os.read(self._keyboard, 65536)
        except OSError:  # what Linux says when the other side is closed
            return False
        self.raw += data.decode(errors="replace")
        return bool(data)


def _control(slave: int) -> None:
    os.setsid()
    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)


@pytest.fixture
def chat(start, tmp_path, monkeypatch) -> Iterator[Callable[..., Terminal]]:
    monkeypatch.setenv("RUSSET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("PROMPT_TOOLKIT_NO_CPR", "1")  # nobody answers where the cursor is
    opened: list[Terminal] = []

    def open_chat(*arguments: str) -> Terminal:
        opened.append(Terminal(start, "chat", *arguments))
        return opened[-1]

    yield open_chat
    for terminal in opened:
        terminal.close()


def test_a_conversation_shows_card_markdown_and_stats(chat, tmp_path) -> None:
    terminal = chat()
    assert "fake: llama, 3 parameters" in terminal.wait_for(PROMPT)
    terminal.type("say some **bold** text" + ENTER)
    terminal.wait_for("some bold text\n")
    assert "\x1b" not in terminal.wait_for("TTFT 0.21 s | prefill 3 120 tok/s")
    terminal.wait_for(PROMPT)
    terminal.type("/exit" + ENTER)
    assert terminal.leave() == 0
    history = tmp_path / "cache" / "chat_history"
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    assert "+say some **bold** text\n" in history.read_text()


def test_no_history_leaves_no_file(chat, tmp_path) -> None:
    terminal = chat("--no-history")
    terminal.wait_for(PROMPT)
    terminal.type("say x" + ENTER)
    terminal.wait_for("TTFT")
    terminal.wait_for(PROMPT)
    terminal.type(CTRL_D)
    assert terminal.leave() == 0
    assert not (tmp_path / "cache").exists()


def test_ctrl_c_stops_the_reply_and_a_second_one_leaves(chat) -> None:
    terminal = chat()
    terminal.wait_for(PROMPT)
    terminal.type("forever" + ENTER)
    terminal.wait_for("more more")
    terminal.type(CTRL_C)
    terminal.wait_for("stopped: interrupted")
    terminal.wait_for("Ctrl-C again leaves")
    terminal.type(CTRL_C)
    assert terminal.leave() == 130


def test_what_was_said_before_ctrl_c_is_kept(chat) -> None:
    terminal = chat()
    terminal.wait_for(PROMPT)
    terminal.type("forever" + ENTER)
    terminal.wait_for("more more")
    terminal.type(CTRL_C)
    terminal.wait_for("Ctrl-C again leaves")
    terminal.type("/stats" + ENTER)
    terminal.wait_for("2 messages")
    terminal.wait_for(PROMPT)
    terminal.type(CTRL_C)  # the command in between makes this a first one, so that it does not leave
    terminal.type("/help" + ENTER)
    terminal.wait_for("lists the commands and keys")
    terminal.wait_for(PROMPT)
    terminal.type(CTRL_D)
    assert terminal.leave() == 0


def test_up_brings_back_a_message_of_several_lines(chat) -> None:
    terminal = chat()
    terminal.wait_for(PROMPT)
    terminal.type("say one\x1b\rtwo" + ENTER)
    terminal.wait_for("\none\ntwo\n")
    terminal.wait_for(PROMPT)
    terminal.type("\x1b[A")
    terminal.wait_for("two")
    terminal.type(ENTER)
    terminal.wait_for("\none\ntwo\n")


def test_what_is_typed_during_a_reply_waits_unseen(chat) -> None:
    terminal = chat("--plain")
    terminal.wait_for(PROMPT)
    terminal.type("slowly" + ENTER)
    terminal.wait_for("begun")
    terminal.type("say typed ahead" + ENTER)
    assert "typed" not in terminal.wait_for("TTFT")
    terminal.wait_for("\ntyped ahead\n")


def test_ctrl_c_in_prefill_stays(chat) -> None:
    terminal = chat()
    terminal.wait_for(PROMPT)
    terminal.type("prefill" + ENTER)
    terminal.wait_for("prefilling")
    terminal.type(CTRL_C)
    terminal.wait_for("Ctrl-C again leaves")
    terminal.type("say still here" + ENTER)
    terminal.wait_for("\nstill here\n")


def test_an_error_in_a_turn_stays(chat) -> None:
    terminal = chat()
    terminal.wait_for(PROMPT)
    terminal.type("toolong" + ENTER)
    terminal.wait_for("russet: The prompt has 9000 tokens")
    terminal.wait_for(PROMPT)
    terminal.type("/nonsense" + ENTER)
    terminal.wait_for("russet: There is no command /nonsense; /help lists the commands.")
    terminal.wait_for(PROMPT)
    terminal.type("say fine" + ENTER)
    terminal.wait_for("\nfine\n")


def test_a_pasted_text_of_several_lines_is_one_message(chat) -> None:
    terminal = chat("--plain")
    terminal.wait_for(PROMPT)
    terminal.type("\x1b[200~say one\n**two**\x1b[201~" + ENTER)
    terminal.wait_for("\none\n**two**\n")


def test_one_answer_on_a_terminal_shows_stats_and_leaves(chat) -> None:
    terminal = chat("-p", "say **hi**")
    terminal.wait_for("\nhi\n")
    terminal.wait_for("TTFT")
    assert terminal.leave() == 0
