"""Ctrl-C within one reply, with the signal raised by the reply itself."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from russet.engine.cli.conversation import Conversation
from russet.engine.cli.interrupts import ReplyInterrupt
from russet.engine.cli.replies import PlainView
from russet.engine.reply import Piece


@pytest.fixture
def chat(fakes) -> Conversation:
    model = fakes.FakeModel()
    return Conversation(model, model.session(), {}, view=lambda: PlainView(False), show_stats=True)


def test_ctrl_c_waits_for_the_piece_and_then_raises() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), ReplyInterrupt() as interrupt:
        interrupt.started = True
        signal.raise_signal(signal.SIGINT)
        assert interrupt.requested
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_before_the_first_piece_raises_at_once() -> None:
    with pytest.raises(KeyboardInterrupt), ReplyInterrupt() as interrupt:
        signal.raise_signal(signal.SIGINT)
    assert not interrupt.requested


def test_ctrl_c_shows_the_piece_and_closes_the_stream(chat, capsys) -> None:
    def pieces() -> Iterator[Piece]:
        yield Piece("one")
        signal.raise_signal(signal.SIGINT)
        yield Piece(" two")
        yield Piece(" three")

    stream = pieces()
    chat.session.stream = lambda text, **options: stream
    chat.answer("x")
    assert chat.interrupted and chat.last_reply is None
    assert stream.gi_frame is None, "the stream was not closed"  # type: ignore[attr-defined]
    assert capsys.readouterr() == ("one two\n", "stopped: interrupted\n")


def test_the_next_reply_is_not_interrupted(chat, capsys) -> None:
    chat.interrupted = True
    chat.answer("say fine")
    assert not chat.interrupted
    assert chat.last_reply is not None and chat.last_reply.text == "fine"


def test_an_error_ends_the_line_and_passes_on(chat, capsys) -> None:
    def pieces() -> Iterator[Piece]:
        yield Piece("begun")
        raise ValueError

    chat.session.stream = lambda text, **options: pieces()
    with pytest.raises(ValueError):
        chat.answer("x")
    assert capsys.readouterr().out == "begun\n"
