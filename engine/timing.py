"""The one clock: every duration and rate that Russet reports comes from here.

Two beginnings, named apart. `ttft_s` runs from the moment the prompt is handed over, tokenising included, to the first
text out. `prefill_s` runs from the end of tokenising to the first token, as MLPerf Client measures it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

now = time.perf_counter


@dataclass(frozen=True, slots=True)
class Timings:
    """One reply's durations in seconds and rates in tokens a second; rates are 0 where nothing was measured."""

    load_s: float
    """The model, and what its prefill strategies bring, such as an auxiliary model."""
    ttft_s: float
    prefill_s: float
    prefill_tps: float
    decode_tps: float
    cached_tokens: int
    """Prompt tokens whose rows were in the cache already, so that prefill skipped them."""
    token_times_s: list[float] = field(default_factory=list)
    """When each token was there, counted from the hand-over of the prompt."""


class Stopwatch:
    """Times one reply, from hand-over to last token."""

    def __init__(self) -> None:
        self._handed_over = now()
        self._tokenised = self._handed_over
        self._first_text: float | None = None
        self._tokens: list[float] = []

    def tokenised(self) -> None:
        self._tokenised = now()

    def token(self) -> None:
        self._tokens.append(now())

    def text(self) -> None:
        if self._first_text is None:
            self._first_text = now()

    def timings(self, load_s: float, prompt_tokens: int, cached_tokens: int) -> Timings:
        """What was measured; decoding's rate counts the intervals between tokens, one fewer than tokens."""
        first = self._tokens[0] if self._tokens else now()
        prefill = first - self._tokenised
        decode = self._tokens[-1] - first if len(self._tokens) > 1 else 0.0
        return Timings(
            load_s=load_s,
            ttft_s=(self._first_text or first) - self._handed_over,
            prefill_s=prefill,
            prefill_tps=(prompt_tokens - cached_tokens) / prefill if prefill else 0.0,
            decode_tps=(len(self._tokens) - 1) / decode if decode else 0.0,
            cached_tokens=cached_tokens,
            token_times_s=[at - self._handed_over for at in self._tokens],
        )
