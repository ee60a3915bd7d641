"""Prompts of every kind -> token ids, with what strategies know of them: the template's tail, and the parts."""

from __future__ import annotations

from collections.abc import Sequence

from russet.engine.chat_template import ChatTemplate
from russet.engine.prefill.base import PromptTokens, Segments
from russet.engine.prompt import Prompt
from russet.engine.tokenizer import Tokenizer

MARK = "\ue0f0"
"""A private-use character: the text behind it is tokenised as one that goes on, without the space that some tokenizers
put before the first word."""


def encode_messages(tokenizer: Tokenizer, template: ChatTemplate, messages: Sequence[dict[str, str]]) -> PromptTokens:
    """A conversation up to where the assistant is to speak; raises ChatTemplateError."""
    text = template.render(messages)
    tokens = tokenizer.encode(text)
    closing = template.closing
    tail = len(encode_rest(tokenizer, closing)) if text.endswith(closing) else 1
    return PromptTokens(tokens, tail=min(max(tail, 1), len(tokens)))


def encode_parts(
    tokenizer: Tokenizer, template: ChatTemplate | None, prompt: Prompt, system: str | None = None
) -> PromptTokens:
    """A prompt in parts, each tokenised by itself; without a template it begins as a raw prompt does."""
    opening, closing = template.frame(system) if template is not None else ("", "")
    preamble, documents, query, task = prompt.texts(opening, closing)
    segments = Segments(
        tuple(tokenizer.encode_prompt(preamble) if template is None else tokenizer.encode(preamble)),
        tuple(tuple(encode_rest(tokenizer, document)) for document in documents),
        tuple(encode_rest(tokenizer, query)),
        tuple(encode_rest(tokenizer, task)),
    )
    tokens = [*segments.preamble, *(token for document in segments.documents for token in document)]
    tokens += [*segments.query, *segments.task]
    return PromptTokens(tokens, tail=max(len(encode_rest(tokenizer, closing)), 1), segments=segments)


def encode_rest(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a text that continues another one."""
    mark, marked = tokenizer.encode(MARK), tokenizer.encode(MARK + text)
    return marked[len(mark) :] if marked[: len(mark)] == mark else tokenizer.encode(text)
