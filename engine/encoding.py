"""Prompts of every kind -> token ids, with what strategies know of them: the template's tail, and the parts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any

from russet.engine.chat_template import ChatTemplate
from russet.engine.errors import InvalidOptionError
from russet.engine.prefill.base import PromptTokens, Segments
from russet.engine.prompt import Prompt
from russet.engine.tokenizer import Tokenizer

MARK = "\ue0f0"
"""A private-use character: the text behind it is tokenised as one that goes on, without the space that some tokenizers
put before the first word."""


def messages_or_ids(prompt: object) -> list[dict[str, Any]] | list[int]:
    """A prompt that is no text: messages, or token ids. Raises InvalidOptionError where it is neither."""
    if isinstance(prompt, Iterable) and not isinstance(prompt, str | bytes | Mapping):
        items = [item.item() if hasattr(item, "item") else item for item in prompt]  # numpy's numbers and MLX's
        if items and all(isinstance(item, Mapping) for item in items):
            return [_message(item, place) for place, item in enumerate(items, 1)]
        if all(isinstance(item, Integral) for item in items):
            return [int(item) for item in items]
    raise InvalidOptionError(
        f"The prompt is {_short(prompt)}; give a text, a list of messages with role and content, or one of token ids."
    )


def _message(message: Mapping[str, Any], place: int) -> dict[str, Any]:
    for key in ("role", "content"):
        if not isinstance(message.get(key), str):
            raise InvalidOptionError(f"Message {place} has {key} {_short(message.get(key))}; give it as text.")
    return dict(message)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _MOST_QUOTED else text[:_MOST_QUOTED] + "…"


_MOST_QUOTED = 60


def check_ids(tokens: Sequence[int], vocab_size: int) -> None:
    """Raise InvalidOptionError for token ids that the model has no row for; MLX would read whatever lies there."""
    wrong = next((end for end in (min(tokens, default=0), max(tokens, default=0)) if not 0 <= end < vocab_size), None)
    if wrong is not None:
        raise InvalidOptionError(
            f"The prompt has the token id {wrong}, and the model has ids from 0 to {vocab_size - 1}; give ids of the "
            "model's own tokenizer."
        )


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
