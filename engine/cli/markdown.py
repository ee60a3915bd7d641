"""Markdown in blocks: where a growing text can be cut, and how one block is drawn with rich."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from markdown_it import MarkdownIt
from markdown_it.token import Token
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markdown import Heading, Markdown, MarkdownElement

# HTML and reference definitions would vanish when drawn; without their rules they are shown as the text they are.
PARSER = MarkdownIt().enable(["strikethrough", "table"]).disable(["html_block", "html_inline", "reference"])


@dataclass(frozen=True)
class Block:
    """A top-level block, or one item of a top-level list, which is then drawn without its neighbours."""

    kind: str  # markdown-it's token type
    first_line: int
    source: str
    number: int | None = None  # of an item in an ordered list

    def follows(self, previous: Block | None) -> bool:
        """Whether this is a further item of the list that `previous` belongs to."""
        return previous is not None and self.kind == previous.kind and self.kind.endswith("list_open")


def split_blocks(text: str, previous: Block | None = None) -> list[Block]:
    """Cut Markdown into blocks; items that carry on the list of `previous` are numbered on from it."""
    lines = text.splitlines(keepends=True)
    blocks: list[Block] = []
    kind, start = "", 1
    for token in PARSER.parse(text):
        if token.map is None:
            continue
        if token.level == 0:
            kind, start = token.type, int(token.attrs.get("start", 1))
        if token.level != (1 if kind.endswith("list_open") else 0):
            continue
        first, end = token.map
        block = Block(kind, first, "".join(lines[first:end]))
        if kind == "ordered_list_open":
            before = previous.number if previous is not None and block.follows(previous) else None
            block = replace(block, number=start if before is None else before + 1)
        blocks.append(block)
        previous = block
    return blocks


def finished_blocks(text: str, previous: Block | None = None) -> tuple[list[Block], str]:
    """The blocks that no further text can change, and the text after them.

    A block is finished when the first line of the next one is complete: until then, that line might still turn out
    to belong to it (`#` starts a heading, `#1` carries a paragraph on).
    """
    complete = text[: text.rfind("\n") + 1]
    blocks = split_blocks(complete, previous)
    if len(blocks) < 2:
        return [], text
    rest = "".join(text.splitlines(keepends=True)[blocks[-1].first_line :])
    return blocks[:-1], rest


class LeftHeading(Heading):
    """A heading at the left margin; rich centres the first level."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        self.text.justify = "left"
        yield self.text


class BlockMarkdown(Markdown):
    """One block, with its line breaks kept: verses and addresses matter more than hard-wrapped prose."""

    elements: ClassVar[dict[str, type[MarkdownElement]]] = {**Markdown.elements, "heading_open": LeftHeading}

    def __init__(self, block: Block) -> None:
        super().__init__("", code_theme="ansi_dark", justify="default")
        self.parsed = PARSER.parse(block.source)
        if block.number is not None and self.parsed:
            self.parsed[0].attrs["start"] = block.number
        _keep_line_breaks(self.parsed)


def _keep_line_breaks(tokens: list[Token]) -> None:
    for token in tokens:
        if token.type == "softbreak":
            token.type = "hardbreak"
        _keep_line_breaks(token.children or [])
