"""A needle in a haystack: one sentence with a number in a long text, and a question for the number."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

from russet.bench.prompts import exact_prompt
from russet.bench.tasks.base import Example, TokenCount
from russet.bench.tasks.data import read_text
from russet.bench.tasks.scores import contains_answer
from russet.engine.errors import InvalidOptionError
from russet.engine.prompt import Prompt

FILE = "wikitext2_valid.txt"
ROWS = 500
GOLDEN = 0.6180339887498949
"""Multiples of it, modulo 1, spread evenly over 0 to 1 however many there are."""
LINE_STEP = 97

PREAMBLE = "Here is a text with a secret code in it. Remember the code."
QUERY = "What is the secret code, a number of five digits?"


class Needle:
    """`needle:N`: a prompt of exactly N tokens, chat template included, of WikiText-2's validation text (1609.07843).

    Every row begins elsewhere in the text and has a code of its own; depths are spread evenly, row by row.
    """

    measure = "code contained"
    binary = True
    generate = 24
    score = staticmethod(contains_answer)

    def __init__(self, tokens: int) -> None:
        self.name = f"needle:{tokens}"
        self.tokens = tokens

    def examples(self, data: Path, count: TokenCount) -> Iterator[Example]:
        """Raises InvalidOptionError where the question alone is longer than the prompt is to be."""
        text = running(read_text(data, FILE))
        for row in range(ROWS):
            yield self._example(row, rotated(text, row), count)

    def _example(self, row: int, text: str, count: TokenCount) -> Example:
        code = str(Random(f"needle:{row}").randrange(10_000, 100_000))
        # From an estimate of the length, so that a longer text never moves the needle.
        characters = int(self._characters(text, code, count) * (row * GOLDEN % 1))
        prompt = exact_prompt(_Counted(count, characters, code), self.tokens, text)
        return Example(f"{self.name}/{row}", needle_prompt(prompt.text, characters, code), (code,))

    def _characters(self, text: str, code: str, count: TokenCount) -> float:
        """About as many characters of the text as fit into the prompt."""
        sample = text[: 5 * self.tokens]
        without = count(needle_prompt("", 0, code))
        if without >= self.tokens:
            raise InvalidOptionError(f"{self.name} leaves no room for a text; the rest takes {without} tokens.")
        return len(sample) * (self.tokens - without) / (count(needle_prompt(sample, 0, code)) - without)


@dataclass(frozen=True, slots=True)
class _Counted:
    """Lets `exact_prompt` cut the haystack to where the whole prompt has the length asked for."""

    count: TokenCount
    characters: int
    code: str

    def encode_prompt(self, text: str) -> list[int]:
        return [0] * self.count(needle_prompt(text, self.characters, self.code))


def running(text: str) -> str:
    """WikiText's running text: without its headings, empty lines and marks of unknown words.

    Small models copy that markup instead of answering: exactly prefilled, SmolLM2-135M missed 6 of 30 codes in 2048
    tokens with it, and gave all six without it.
    """
    lines = (line for line in text.splitlines(keepends=True) if line.strip() and not line.lstrip().startswith("="))
    return "".join(lines).replace("<unk> ", "")


def rotated(text: str, row: int) -> str:
    """The text begun at another line with every row, its own beginning put behind its end."""
    lines = text.splitlines(keepends=True)
    start = row * LINE_STEP % len(lines)
    return "".join((*lines[start:], *lines[:start])).lstrip()


def needle_prompt(text: str, characters: int, code: str) -> Prompt:
    """The prompt with the needle after the first sentence or line that ends at or after `characters`."""
    stops = [at for stop in (". ", "\n") if (at := text.find(stop, characters)) >= 0]
    place = min(stops) + 1 if stops else len(text)
    haystack = f"{text[:place]} The secret code is {code}. {text[place:].lstrip()}"
    return Prompt(f"{PREAMBLE}\n\n{haystack}", (), QUERY)
