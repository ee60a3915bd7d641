"""One timed answer to a text prompt, and the contract of what gives it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

from russet.bench.base import Measurement
from russet.bench.prompts import Prompt
from russet.engine.machine import Pressure


@dataclass(frozen=True, slots=True)
class Run:
    """One answer of a fixed number of greedy tokens; what an engine does not tell is None, or an empty list.

    `ttft_s` runs from the text prompt to the first text, `prefill_s` from its tokens to the first token. `decode_tps`
    counts n − 1 intervals. `token_times_s` counts from the hand-over of the prompt. `layer_tokens` are prompt tokens
    that each layer computed, `revived` how many of them in decoding. `ran` is the prefill that ran, and `note` why it
    is not the one asked for. `thermal` and `memory_pressure` were read right before the run, on a Mac.
    """

    ttft_s: float | None
    prefill_s: float
    prefill_tps: float
    decode_tps: float | None
    peak_memory_bytes: int | None
    token_times_s: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    layer_tokens: list[int] = field(default_factory=list)
    revived: int = 0
    ran: str = "exact"
    exact: bool = True
    note: str = ""
    thermal: str | None = None
    memory_pressure: str | None = None

    @property
    def intervals_s(self) -> list[float]:
        """Seconds between one token and the next."""
        return [b - a for a, b in zip(self.token_times_s, self.token_times_s[1:], strict=False)]

    def under(self, pressure: Pressure) -> Run:
        return replace(self, thermal=pressure.thermal, memory_pressure=pressure.memory)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class TextContender(Protocol):
    """An engine, with a way to prefill, that answers texts. `setting` says in words what it computes with.

    `weights_bytes` is None where the weights lie in another process.
    """

    @property
    def name(self) -> str: ...
    @property
    def engine(self) -> str: ...
    @property
    def prefill(self) -> str: ...
    @property
    def setting(self) -> str: ...
    @property
    def weights_bytes(self) -> int | None: ...

    def run(self, prompt: Prompt, generate: int) -> Run:
        """Answer with exactly `generate` tokens, whatever they are."""
        ...


def from_measurement(measured: Measurement) -> Run:
    """What a measurement in this process says, exact prefill taken for granted."""
    timings = measured.timings
    return Run(
        ttft_s=timings.ttft_s,
        prefill_s=timings.prefill_s,
        prefill_tps=timings.prefill_tps,
        decode_tps=timings.decode_tps or None,
        peak_memory_bytes=measured.peak_memory_bytes,
        token_times_s=list(timings.token_times_s),
        tokens=list(measured.tokens),
    )


def share_computed(run: Run, exact: Sequence[Run]) -> float | None:
    """(token, layer) pairs that a run computed, over those of exact prefill; None where one of them does not tell."""
    whole = sum(exact[0].layer_tokens) if exact else 0
    return sum(run.layer_tokens) / whole if whole and run.layer_tokens else None
