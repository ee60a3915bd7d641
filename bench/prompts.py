"""Prompts of real text that are exactly so many tokens long."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Protocol

from russet.engine.errors import InvalidOptionError


class Encoder(Protocol):
    """What is needed of a tokenizer: a raw prompt's ids, BOS included where it adds one."""

    def encode_prompt(self, text: str) -> list[int]: ...


@dataclass(frozen=True, slots=True)
class Prompt:
    """A text and its token ids."""

    text: str
    tokens: list[int]


def book() -> str:
    """*Alice's Adventures in Wonderland*, public domain; text/README.md names the source."""
    return resources.files("russet.bench").joinpath("text", "alice.txt").read_text(encoding="utf-8")


def check_lengths(lengths: Sequence[int], generate: int, max_positions: int) -> None:
    """Refuse prompts that leave no room in the context for `generate` tokens, and lengths below 1."""
    for length in lengths:
        if length < 1:
            raise InvalidOptionError(f"A prompt length is {length}; it must be at least 1.")
        if length + generate > max_positions:
            raise InvalidOptionError(
                f"A prompt of {length} tokens and {generate} generated ones do not fit in the model's context of "
                f"{max_positions}; choose shorter ones."
            )


def exact_prompt(tokenizer: Encoder, length: int, text: str | None = None) -> Prompt:
    """A beginning of `text`, the book unless given, that encodes to exactly `length` tokens.

    A text that is too short is repeated. Where no beginning gives the exact number, since one more character can
    add two tokens, the text's first line is left out.
    """
    source = book() if text is None else text
    for _ in range(ATTEMPTS):
        prompt = _cut(tokenizer, _long_enough(tokenizer, source, length), length)
        if prompt is not None:
            return prompt
        source = source.partition("\n")[2] or source[1:]
    raise InvalidOptionError(f"No beginning of the text is exactly {length} tokens long; choose another prompt length.")


ATTEMPTS = 8
SLACK = 64
"""Characters that are tried beyond the first cut: a cut inside a word can take more tokens than one after it."""


def _long_enough(tokenizer: Encoder, text: str, length: int) -> str:
    """A beginning of the text, repeated if need be, of more than `length` tokens, and not much longer than that."""
    characters = 8 * length + SLACK
    while True:
        copies = -(-characters // max(1, len(text)))
        long = "\n".join([text] * copies)[:characters]
        if len(tokenizer.encode_prompt(long)) > length:
            return long
        characters *= 2


def _cut(tokenizer: Encoder, text: str, length: int) -> Prompt | None:
    low, high = 1, len(text)
    while low < high:
        middle = (low + high) // 2
        if len(tokenizer.encode_prompt(text[:middle])) < length:
            low = middle + 1
        else:
            high = middle
    for end in range(low, min(low + SLACK, len(text))):
        tokens = tokenizer.encode_prompt(text[:end])
        if len(tokens) == length:
            return Prompt(text[:end], tokens)
    return None
