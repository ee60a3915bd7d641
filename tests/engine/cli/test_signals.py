"""Ctrl-C, closed pipes and full disks, each on a process of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest


def read_until(stream, text: str) -> str:
    """What the stream says up to `text`."""
    seen = ""
    while text not in seen:
        character = stream.read(1)
        assert character, f"the stream ended after {seen!r}"
        seen += character
    return seen


@pytest.mark.parametrize("command", [["generate"], ["chat", "--plain"]])
def test_ctrl_c_in_a_reply_keeps_its_text_and_is_130(start, command: list[str]) -> None:
    process = start(*command, "-p", "forever and")
    said = read_until(process.stdout, "more more")
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=20)
    assert (said + rest).startswith("You said: forever and more")
    assert (said + rest).endswith(" more\n")
    assert (process.returncode, errors) == (130, "")


@pytest.mark.parametrize(
    ("arguments", "announced"),
    [
        (["generate", "-m", "slow-load", "-p", "x"], "loading"),
        (["chat", "-m", "slow-load", "-p", "x"], "loading"),
        (["generate", "-p", "prefill"], "prefilling"),
        (["generate", "-p", "prefill", "--json"], "prefilling"),
        (["chat", "-p", "prefill"], "prefilling"),
    ],
)
def test_ctrl_c_before_the_reply_leaves_cleanly(start, arguments: list[str], announced: str) -> None:
    process = start(*arguments)
    read_until(process.stderr, announced + "\n")
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=20)
    assert (process.returncode, output, errors) == (130, "", "")


@pytest.mark.parametrize("command", [["generate"], ["chat"]])
def test_a_closed_pipe_ends_it_quietly(start, command: list[str]) -> None:
    process = start(*command, "-p", "forever")
    read_until(process.stdout, "more")
    process.stdout.close()
    errors = process.stderr.read()
    assert (process.wait(timeout=20), errors) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
@pytest.mark.parametrize("command", [["generate", "--json"], ["chat"], ["generate", "-m", "unflushed"]])
def test_a_full_disk_is_one_sentence(start, command: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        process = start(*command, "-p", "say hi", stdout=full)
        _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (1, "russet: No space left on device\n")


def test_an_open_silent_pipe_is_announced(start) -> None:
    process = start("chat", "-p", "say", stdin=subprocess.PIPE)
    note = read_until(process.stderr, "\n")
    assert note.startswith("russet: note: Waiting for text on standard input")
    output, _ = process.communicate("late text", timeout=20)
    assert (process.returncode, output) == (0, "You said: say\n\nlate text\n")


def test_a_closed_standard_input_is_no_input() -> None:
    fakes = Path(__file__).with_name("fakes.py")
    done = subprocess.run(
        ["/bin/sh", "-c", f"'{sys.executable}' '{fakes}' chat -p 'say hi' <&-"],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "hi\n", "")
