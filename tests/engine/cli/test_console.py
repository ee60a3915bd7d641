from __future__ import annotations

import io

import pytest

from russet.engine.cli.console import NO_BREAK, RichProgress, aside, printable, stats_line, terminal_progress


class TerminalText(io.StringIO):
    def isatty(self) -> bool:
        return True


def plain_stats(reply) -> str:
    return stats_line(reply).replace(NO_BREAK, " ")


def test_the_stats_line(fakes) -> None:
    reply = fakes.make_reply("one two three")
    assert plain_stats(reply) == ("3 tok | TTFT 0.21 s | prefill 3 120 tok/s | decode 61.4 tok/s | cached 380 | 2.1 GB")


def test_the_stats_line_leaves_out_what_was_not_measured(fakes) -> None:
    timings = fakes.Timings(
        load_s=0, ttft_s=1.5, prefill_s=1, prefill_tps=12.34, decode_tps=0, cached_tokens=0, token_times_s=[]
    )
    reply = fakes.make_reply("one", "length", timings=timings, exact=False, peak_memory_bytes=540_000_000)
    assert plain_stats(reply) == ("1 tok | TTFT 1.50 s | prefill 12.3 tok/s | 540.0 MB | approximate | stopped: length")


def test_asides_wrap_at_words_but_not_within_a_figure(capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    aside(f"decode 61.4 tok/s | 2.1{NO_BREAK}GB\nnext\x1b")
    assert capsys.readouterr().err == "decode 61.4 tok/s |\n2.1 GB\nnext\n"


def test_printable_keeps_text_and_drops_control_characters() -> None:
    assert printable("a\tb\nü🙂\x1b[31m\r\x00\x9f\x7f") == "a\tb\nü🙂[31m"


def test_progress_is_a_line_for_large_tasks_where_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    with terminal_progress() as progress:
        progress.start("Reading", 10)
        progress.advance(10)
        progress.finish()
        progress.start("Fetching a model", 92_871_040)
        progress.advance(92_871_040)
    assert capsys.readouterr() == ("", "russet: Fetching a model, 92.9 MB\n")


def test_a_progress_bar_on_a_terminal_ends_with_its_block(monkeypatch) -> None:
    screen = TerminalText()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    with pytest.raises(KeyboardInterrupt), terminal_progress() as progress:
        progress.start("Fetching [weights]", 2_000_000)
        progress.advance(1_000_000)
        progress.start("Converting", None)
        raise KeyboardInterrupt
    assert isinstance(progress, RichProgress)
    shown = screen.getvalue()
    assert "Fetching [weights]" in shown and "1.0/2.0 MB" in shown and "Converting" in shown
    assert shown.endswith(("\x1b[?25h", "\x1b[2K"))  # the cursor is shown again and the bar is gone
