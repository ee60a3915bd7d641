"""Streamed Markdown: wherever the pieces are cut, the terminal ends up with the same lines, each once."""

from __future__ import annotations

import io
import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from russet.engine.cli.markdown import finished_blocks, split_blocks
from russet.engine.cli.replies import MarkdownView

WIDTH, HEIGHT = 40, 10

REPLY = (
    """# Title

A paragraph that is long enough to be *wrapped* at forty columns, twice over, for certain.
Roses are red
#1 violets are blue

1. one
1. two, which is long enough to be wrapped as well
   - nested

1. three

- a
- b

```python
"""
    + "".join(f"x = {i}\n" for i in range(15))
    + """```

| name | value |
|------|-------|
| a    | 1     |
| b    | a value that is wide |

Setext
------

> quoted

<think>tags</think> and [ref][1]

[1]: https://example.org
end"""
)


class Screen(io.StringIO):
    """A terminal with scrollback: it can only go back to rows that are still on the screen."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = [""]
        self.row = 0
        self.log = ""

    def write(self, text: str) -> int:
        self.log += text
        for code in re.findall(r"\x1b\[[0-9;]*[A-Za-z]|\x1b\][^\x1b]*\x1b\\|\n|[^\x1b\n]+", text):
            if code == "\n":
                self.row += 1
                if self.row == len(self.rows):
                    self.rows.append("")
            elif code.endswith("F") and code.startswith("\x1b["):
                self.row -= int(code[2:-1])
                assert self.row >= max(0, len(self.rows) - HEIGHT), "moved above the screen"
            elif code == "\x1b[J":
                del self.rows[self.row :]
                self.rows.append("")
            elif not code.startswith("\x1b"):
                assert len(code) <= WIDTH
                self.rows[self.row] += code
        return len(text)


def make_view() -> tuple[MarkdownView, Screen]:
    screen = Screen()
    console = Console(file=screen, force_terminal=True, width=WIDTH, height=HEIGHT, highlight=False)
    view = MarkdownView(console)
    view.MIN_INTERVAL_S = view.REST = 0  # draw at every piece
    return view, screen


def show(*pieces: str) -> list[str]:
    view, screen = make_view()
    for piece in pieces:
        view.feed(piece)
    view.finish()
    assert screen.rows[-1] == "", "the cursor is on a new line"
    return [row.rstrip() for row in screen.rows[:-1]]


def test_every_block_is_drawn_as_what_it_is() -> None:
    code = [f" x = {i}" for i in range(15)]
    assert show(REPLY) == [
        *("Title", ""),
        "A paragraph that is long enough to be",
        *("wrapped at forty columns, twice over,", "for certain.", "Roses are red", "#1 violets are blue", ""),
        *(" 1 one", " 2 two, which is long enough to be", "   wrapped as well", "    • nested", " 3 three", ""),
        *(" • a", " • b", "", *code, ""),
        *(" name  value", " ──────────────────────────", " a     1", " b     a value that is wide", ""),
        *("Setext", "", "▌ quoted", "", "<think>tags</think> and [ref][1]", "", "[1]: https://example.org", "end"),
    ]


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.sets(st.integers(1, len(REPLY) - 1), max_size=60))
def test_the_cuts_between_pieces_do_not_matter(cuts: set[int]) -> None:
    ends = [0, *sorted(cuts), len(REPLY)]
    assert show(*(REPLY[a:b] for a, b in pairwise(ends))) == show(REPLY)


def test_single_characters_as_pieces() -> None:
    assert show(*REPLY) == show(REPLY)


def test_a_finished_block_is_not_written_again() -> None:
    view, screen = make_view()
    view.feed("first\n\nsecond")
    assert screen.log.count("first") == 1
    view.feed(" third\n\nfourth")
    view.finish()
    assert screen.log.count("first") == 1
    assert screen.log.count("second") == 2  # once as it grew, once as it changed


def test_a_block_taller_than_the_screen_shows_its_end_while_it_grows() -> None:
    view, screen = make_view()
    view.feed("```\n" + "".join(f"line {i}\n" for i in range(30)))
    shown = [row.strip() for row in screen.rows if row.strip()]
    assert shown == [f"line {i}" for i in range(22, 30)]
    view.finish()
    assert [row.strip() for row in screen.rows if row.strip()] == [f"line {i}" for i in range(30)]


def test_drawing_waits_between_pieces() -> None:
    view, screen = make_view()
    view.MIN_INTERVAL_S = 3600
    view.feed("a")
    view.feed("b")
    assert screen.log == "a\n"
    view.finish()
    assert screen.rows == ["ab", ""]


def test_a_reply_cannot_steer_the_terminal() -> None:
    view, screen = make_view()
    view.feed("a\x1b[2Jb\x9b2Jc\x07")
    view.finish()
    assert screen.rows == ["a[2Jb2Jc", ""]


def test_an_empty_reply_shows_nothing() -> None:
    assert show() == show("") == show("\n") == []


@pytest.mark.parametrize("text", ["para\n#", "para\n\nnext", "- a\n- b", "```\ncode\n\nmore\n"])
def test_a_block_is_not_finished_before_the_next_ones_first_line(text: str) -> None:
    assert finished_blocks(text) == ([], text)


def test_finished_blocks_and_rest_make_up_the_text() -> None:
    done, rest = finished_blocks("para\n\n1. a\n2. b\n\nnext\nlast")
    assert [(block.source, block.number) for block in done] == [("para\n", None), ("1. a\n", 1), ("2. b\n\n", 2)]
    assert rest == "next\nlast"


def test_numbering_goes_on_from_the_item_before() -> None:
    (first,) = split_blocks("7. a\n")
    assert [block.number for block in split_blocks("7. b\n7. c\n", first)] == [8, 9]
    assert [block.number for block in split_blocks("3. b\n", None)] == [3]
