"""The contract of a contender: prompt tokens in, a fixed number of greedy tokens out, every one of them timed."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from russet.engine.timing import Stopwatch, Timings


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


def measure(tokens: Sequence[int], start: Callable[[], Iterator[int]], weights_bytes: int) -> Measurement:
    """Time the token loop that `start` begins; every contender is timed by this one function.

    Memory is the contender's weights plus what its run held at most beyond what was held before it, since other
    contenders' weights lie in the same process.
    """
    import mlx.core as mx

    gc.collect()
    mx.synchronize()
    mx.clear_cache()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    produced: list[int] = []
    watch = Stopwatch()
    watch.tokenised()
    for token in start():
        watch.token()
        produced.append(token)
    mx.synchronize()
    peak = weights_bytes + max(0, mx.get_peak_memory() - before)
    return Measurement(produced, watch.timings(load_s=0.0, prompt_tokens=len(tokens), cached_tokens=0), peak)
