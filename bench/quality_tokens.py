"""Items in tokens: what of a sequence is context and what is scored, as lm-evaluation-harness cuts it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from russet.engine.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens of which those from index `first`, 1 or more, on are scored."""

    tokens: list[int]
    first: int

    @property
    def context(self) -> list[int]:
        return self.tokens[: self.first]

    @property
    def continuation(self) -> list[int]:
        return self.tokens[self.first :]


def continued(tokenizer: Tokenizer, context: str, continuation: str) -> Span:
    """Context and continuation tokenised as one text; the continuation is what lies behind the context's own tokens.

    Space at the end of the context belongs to the continuation.
    """
    stripped = context.rstrip()
    whole = tokenizer.encode_prompt(context + continuation)
    first = len(tokenizer.encode_prompt(stripped)) if stripped else 0
    # A continuation that merges with the context's last token is scored with it.
    first = min(first, len(whole) - 1)
    if first < 1:
        lead = lead_token(tokenizer)
        return Span([lead, *whole], 1)
    return Span(whole, first)


def windows(tokenizer: Tokenizer, text: str, length: int) -> Iterator[Span]:
    """Windows in which every token of a text is scored once.

    A window has up to `length` tokens and one in front of them: the one before it in the text, or for the first window
    the one that begins a text. The last window reaches back as far as `length` allows, and only its new tokens count.
    """
    tokens = tokenizer.encode(text)
    lead = lead_token(tokenizer)
    for start in range(0, len(tokens), length):
        end = min(start + length, len(tokens))
        begin = max(0, end - length)
        before = tokens[begin - 1] if begin else lead
        yield Span([before, *tokens[begin:end]], 1 + start - begin)


def halved(window: Span) -> Span:
    """A window of which only the tokens behind its first half are scored, as far as they were before."""
    return Span(window.tokens, max(window.first, len(window.tokens) // 2))


def lead_token(tokenizer: Tokenizer) -> int:
    """What stands before a text that has nothing before it: the BOS token, or where there is none the EOS token."""
    if tokenizer.bos_id is not None:
        return tokenizer.bos_id
    named = tokenizer.token_id(tokenizer.token_names.get("eos_token", ""))
    return named if named is not None else min(tokenizer.eos_ids, default=0)
