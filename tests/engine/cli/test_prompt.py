"""The input line, with keys from a pipe instead of a keyboard."""

from __future__ import annotations

import logging
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.history import InMemoryHistory
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from russet.engine.cli.prompt import PromptReader, SlashCompleter, open_history

ENTER, ALT_ENTER, CTRL_J, CTRL_C, CTRL_D = "\r", "\x1b\r", "\n", "\x03", "\x04"


@pytest.fixture
def reader_of() -> Iterator[Callable[[str], PromptReader]]:
    with create_pipe_input() as keys:

        def make(typed: str) -> PromptReader:
            keys.send_text(typed)
            return PromptReader(InMemoryHistory(), keys, DummyOutput())

        yield make


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("hello" + ENTER, "hello"),
        ("one" + ALT_ENTER + "two" + CTRL_J + "three" + ENTER, "one\ntwo\nthree"),
        ('"""one' + ENTER + ENTER + 'two"""' + ENTER, "one\n\ntwo"),
        ('"""' + ENTER + "def f():" + ENTER + "    pass" + ENTER + '"""' + ENTER, "def f():\n    pass"),
        ('"""one line"""' + ENTER, "one line"),
        ('say """this' + ENTER, 'say """this'),
        ("\x1b[200~pasted\r\nlines\n\x1b[201~" + ENTER, "pasted\nlines\n"),
        ("mistake" + CTRL_C + "right" + ENTER, "right"),
    ],
)
def test_what_is_typed_becomes_one_message(reader_of, typed: str, message: str) -> None:
    assert reader_of(typed).read() == message


def test_two_ctrl_c_in_a_row_leave(reader_of) -> None:
    with pytest.raises(KeyboardInterrupt):
        reader_of(CTRL_C + CTRL_C).read()


def test_the_first_of_two_may_clear_the_line(reader_of) -> None:
    with pytest.raises(KeyboardInterrupt):
        reader_of("text" + CTRL_C + CTRL_C).read()


def test_text_between_makes_the_next_ctrl_c_a_first_one(reader_of) -> None:
    reader = reader_of(CTRL_C + "text" + CTRL_C + "more" + ENTER + CTRL_C + "again" + ENTER)
    assert [reader.read(), reader.read()] == ["more", "again"]


def test_one_ctrl_c_leaves_after_a_reply_was_cut_short(reader_of) -> None:
    reader = reader_of(CTRL_C)
    reader.interrupted = True
    with pytest.raises(KeyboardInterrupt):
        reader.read()


def test_ctrl_d_ends_on_an_empty_line_only(reader_of) -> None:
    reader = reader_of("text" + CTRL_D + ENTER + CTRL_D)
    assert reader.read() == "text"
    with pytest.raises(EOFError):
        reader.read()


def completions(text: str) -> list[str]:
    return [found.text for found in SlashCompleter().get_completions(Document(text), CompleteEvent())]


def test_tab_completes_commands_and_paths(tmp_path, monkeypatch) -> None:
    (tmp_path / "talk.russet").touch()
    monkeypatch.chdir(tmp_path)
    assert completions("/s") == ["/system", "/save", "/stats"]
    assert completions("/load ta") == ["lk.russet"]
    assert completions("/system ta") == completions("say /s") == completions("") == []


def test_the_history_file_is_private_from_the_start(tmp_path) -> None:
    path = tmp_path / "new" / "history"
    open_history(path).append_string("secret")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    assert list(open_history(path).load_history_strings()) == ["secret"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_history_that_cannot_be_opened_costs_a_note(tmp_path, caplog) -> None:
    (tmp_path / "file").touch()
    history = open_history(tmp_path / "file" / "history")
    history.append_string("kept in memory")
    assert "What you type is not kept" in caplog.text


def test_a_history_that_cannot_be_written_costs_a_note(tmp_path, caplog) -> None:
    folder = tmp_path / "cache"
    history = open_history(folder / "history")
    (folder / "history").unlink()
    Path(folder / "history").mkdir()
    with caplog.at_level(logging.WARNING):
        history.append_string("kept in memory")
    assert "What you type is not kept" in caplog.text
