"""The contract of a prefill strategy: prompt tokens go in, the cache is filled, the first token's logits come out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import mlx.core as mx


class Extendable(Protocol):
    """What exact prefill and decoding need of a model; models/decoder.py has it, and so has the mlx-lm fallback."""

    def new_cache(self, kv_bits: int = 16) -> Any: ...

    def extend(self, tokens: mx.array, cache: Any, logits: int = 1) -> mx.array | None: ...


@dataclass(frozen=True, slots=True)
class Prefilled:
    """What a strategy hands to decoding: logits [1, vocab] after the last prompt token, and what it did."""

    logits: mx.array
    exact: bool
    strategy: str
    computed_tokens: int


class Prefill(Protocol):
    """A way to fill the cache. `exact` strategies leave the rows that one pass over the whole prompt would leave."""

    name: str
    exact: bool

    def __call__(self, decoder: Extendable, tokens: Sequence[int], cache: Any) -> Prefilled:
        """Append `tokens`, at least one, to what the cache holds already."""
        ...
