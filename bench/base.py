"""The contract of a contender: prompt tokens in, a fixed number of greedy tokens out, every one of them timed."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from russet.engine.timing import Stopwatch, Timings

OURS = "russet"
"""Our own engine's name among contenders."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """One timed run: the tokens that came, when, and the most memory that it took, weights included."""

    tokens: list[int]
    timings: Timings
    peak_memory_bytes: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Measurement:
        return cls(raw["tokens"], Timings(**raw["timings"]), raw["peak_memory_bytes"])


class Contender(Protocol):
    """An engine with a model in memory. `setting` says in words what it computes with."""

    name: str
    setting: str

    def run(self, tokens: Sequence[int], generate: int) -> Measurement:
        """Prefill `tokens` into an empty cache and draw exactly `generate` tokens, whatever they are."""
        ...


class Text(Protocol):
    """How an engine reads a prompt and writes a reply."""

    def encode(self, text: str) -> list[int]:
        """Token ids of a prompt without a chat template."""
        ...

    def writer(self) -> Callable[[int], str]:
        """Takes a reply's tokens one by one, and returns the text that is certain now that each has come."""
        ...


def measure(
    prompt: Sequence[int] | str,
    start: Callable[[Sequence[int]], Iterator[int]],
    weights_bytes: int,
    text: Text | None = None,
) -> Measurement:
    """Time the token loop that `start` begins on a prompt's tokens; every contender is timed by this one function.

    With `text` the prompt is one and the clock runs from it to text; without, from tokens to tokens. Memory is the
    contender's weights plus what its run held at most beyond what was held before it, since other contenders' weights
    lie in the same process.
    """
    import mlx.core as mx

    gc.collect()
    mx.synchronize()
    mx.clear_cache()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    produced: list[int] = []
    watch = Stopwatch()
    tokens = text.encode(prompt) if text is not None and isinstance(prompt, str) else list(map(int, prompt))
    write = text.writer() if text is not None else None
    watch.tokenised()
    for token in start(tokens):
        watch.token()
        produced.append(token)
        if write is not None and write(token):
            watch.text()
    mx.synchronize()
    peak = weights_bytes + max(0, mx.get_peak_memory() - before)
    return Measurement(produced, watch.timings(load_s=0.0, prompt_tokens=len(tokens), cached_tokens=0), peak)
