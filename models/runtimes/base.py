"""What the engine needs of a decoder whose layers another program computes: exact prefill and decoding.

Prefix reuse, sampling, chat and the clock are the engine's own and apply unchanged; prefill strategies that look inside
the layers do not, and say so.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import numpy as np

from russet.engine.errors import InvalidOptionError


class ForeignDecoder(ABC):
    """A decoder behind `new_cache` and `extend`. `runtime` names what computes it, for the model card."""

    runtime: str
    max_positions: int
    vocab_size: int | None = None
    """None where only the tokenizer tells."""

    @abstractmethod
    def new_cache(self, kv_bits: int = 16) -> Any: ...

    @abstractmethod
    def extend(self, tokens: mx.array, cache: Any, logits: int = 1) -> mx.array | None: ...

    def refuse_kv_bits(self, kv_bits: int) -> None:
        """Raises InvalidOptionError for a cache in another format than the other program keeps."""
        if kv_bits != 16:
            raise InvalidOptionError(
                f"kv_bits {kv_bits} is for Russet's own architectures; this model runs through {self.runtime}."
            )


def runtime_of(decoder: Any) -> str:
    """What computes a decoder that is not ours, in words."""
    return decoder.runtime if isinstance(decoder, ForeignDecoder) else "another program"


class StateCache:
    """Rows that another program keeps, in `state`; only their count is known here.

    A package masks rows at or behind the position that it is given, so to go back is to count down.
    """

    kv_bits = 16

    def __init__(self, state: Any) -> None:
        self.state = state
        self.next_position = 0

    def reserve(self, rows: int) -> None:
        """The state has its full size from the start."""

    def trim(self, length: int) -> bool:
        self.next_position = length
        return True

    def arrays(self) -> list[mx.array]:
        return []


class PackageDecoder(ForeignDecoder):
    """A decoder in a package that takes up to `chunk` tokens a call, at a position, and returns the last one's logits.

    A subclass sets `chunk`, `max_positions`, `vocab_size` and `runtime`, and says how to make a state and to run.
    `padded` says that a call with several tokens always writes `chunk` rows, so that near the end of the context, where
    they would not fit, tokens go one by one.
    """

    chunk: int
    padded: bool = False

    @abstractmethod
    def make_state(self) -> Any:
        """Empty rows for `max_positions` positions."""

    @abstractmethod
    def run(self, tokens: np.ndarray, position: int, state: Any) -> np.ndarray:
        """Append 1 to `chunk` tokens (int32 [n]) at `position`; logits [vocab] of the last one."""

    def new_cache(self, kv_bits: int = 16) -> StateCache:
        self.refuse_kv_bits(kv_bits)
        return StateCache(self.make_state())

    def extend(self, tokens: mx.array, cache: StateCache, logits: int = 1) -> mx.array | None:
        """As `Decoder.extend`, with logits of the last token alone."""
        if logits > 1:
            raise InvalidOptionError(f"{self.runtime} gives logits of the last token only, not of {logits}.")
        last: np.ndarray | None = None
        for part in self.calls(np.array(tokens, dtype=np.int32)[0], cache.next_position):
            last = self.run(part, cache.next_position, cache.state)
            cache.next_position += len(part)
        return mx.array(last.astype(np.float32))[None, None] if logits and last is not None else None

    def calls(self, tokens: np.ndarray, position: int) -> Iterator[np.ndarray]:
        """The tokens of each call, in order."""
        start = 0
        while start < len(tokens):
            room = self.chunk if not self.padded or position + start + self.chunk <= self.max_positions else 1
            yield tokens[start : start + room]
            start += room
