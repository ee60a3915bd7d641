"""The contract of a prefill strategy: a prompt goes in, the cache is filled, the first token's logits come out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import mlx.core as mx

from russet.engine.errors import InvalidOptionError


@dataclass(frozen=True, slots=True)
class Segments:
    """A prompt in parts, as token ids: what comes first, documents that need not see each other, what is asked of
    them, and what follows the question (a chat template's tail, for one)."""

    preamble: tuple[int, ...]
    documents: tuple[tuple[int, ...], ...]
    query: tuple[int, ...]
    task: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class PromptTokens:
    """The token ids of a prompt.

    The last `tail` of them belong to the chat template (or are the last one alone), and no strategy drops them.
    `segments` are the same tokens in parts, where the caller gave parts.
    """

    tokens: Sequence[int]
    tail: int = 1
    segments: Segments | None = None

    def after(self, cached: int) -> PromptTokens:
        """The prompt without its first `cached` tokens, whose rows are there already."""
        if not cached:
            return self
        return replace(self, tokens=self.tokens[cached:], tail=min(self.tail, len(self.tokens) - cached), segments=None)


class Extendable(Protocol):
    """What exact prefill and decoding need of a model; models/decoder.py has it, and so has the mlx-lm fallback."""

    def new_cache(self, kv_bits: int = 16) -> Any: ...

    def extend(self, tokens: mx.array, cache: Any, logits: int = 1) -> mx.array | None: ...


class Extend(Protocol):
    """One step of decoding: token ids [1, 1] are appended to the cache; logits [1, 1, vocab] come out."""

    def __call__(self, tokens: mx.array, cache: Any) -> mx.array | None: ...


@dataclass(slots=True)
class Work:
    """What was computed of a prompt; decoding may add to it, where a strategy computes dropped tokens after all.

    `layer_tokens` counts prompt tokens a layer, over its attention and FFN; it is empty where the model does not tell.
    """

    layer_tokens: list[int] = field(default_factory=list)
    revived: int = 0
    """Times that decoding computed a dropped token in one more layer."""


@dataclass(frozen=True, slots=True)
class Prefilled:
    """What a strategy hands to decoding: logits [1, vocab] after the last prompt token, and what it did.

    `strategy` is the one that ran. `note` is a sentence that says why it is not the one asked for, if so. `extend`
    takes the place of the decoder's own in decoding, for strategies that have work left.
    """

    logits: mx.array
    exact: bool
    strategy: str
    work: Work
    note: str = ""
    extend: Extend | None = None


class Prefill(Protocol):
    """A way to fill the cache. `exact` strategies leave the rows that one pass over the whole prompt would leave."""

    name: str
    exact: bool

    def __call__(self, decoder: Any, prompt: PromptTokens, cache: Any) -> Prefilled:
        """Append the prompt, at least one token, to what the cache holds already.

        One that does not apply here (a short prompt, a model that it cannot handle) runs `Exact` and says why in
        `note`.
        """
        ...


@runtime_checkable
class Spaced(Protocol):
    """A strategy under which a prompt takes another number of positions than it has tokens."""

    def positions(self, prompt: PromptTokens) -> int:
        """The position of the reply's first token."""
        ...


def positions_of(prefill: Prefill, prompt: PromptTokens) -> int:
    """How many positions of the model's context a prompt takes."""
    return prefill.positions(prompt) if isinstance(prefill, Spaced) else len(prompt.tokens)


@runtime_checkable
class Prepared(Protocol):
    """A strategy that brings weights of its own, which are better loaded before a prompt waits for them."""

    def prepare(self, decoder: Any) -> object:
        """Load them and check them against the decoder, once; nothing for one that the strategy cannot handle."""
        ...


def prepare(prefill: Prefill, decoder: Any) -> None:
    """Load what a strategy brings, so that the wait for the first token is prefill and nothing else.

    Raises InvalidOptionError for what is no strategy, such as the name of one.
    """
    if isinstance(prefill, type) or not callable(prefill):
        raise InvalidOptionError(f"prefill is {prefill!r}; it must be an object such as russet.LazyLLM().")
    if isinstance(prefill, Prepared):
        prefill.prepare(decoder)
