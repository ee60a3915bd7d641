"""What generation hands back: pieces of text as they come, and the whole reply with what it took."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from russet.engine.timing import Timings

FinishReason = Literal["stop", "length", "interrupted"]


@dataclass(frozen=True, slots=True)
class Reply:
    """A finished reply.

    `tokens` are the generated ids, the end-of-turn token excluded. `exact` says that the output is what the reference
    implementation would give: no lossy prefill, no int8 cache, no neurons cut by a threshold. `strategy` is the prefill
    that ran; `note` says why it is not the one asked for, if so. `layer_tokens` are the prompt tokens that each layer
    computed, in prefill and decoding together, and `revived` how many of those decoding did. `peak_memory_bytes` is
    MLX's peak since the reply began, weights included.
    """

    text: str
    tokens: list[int]
    prompt_tokens: int
    finish_reason: FinishReason
    exact: bool
    strategy: str
    timings: Timings
    peak_memory_bytes: int
    note: str = ""
    layer_tokens: tuple[int, ...] = ()
    revived: int = 0


@dataclass(frozen=True, slots=True)
class Piece:
    """Some text of a reply; `token` is the id that completed it, and `reply` is set on the last piece only."""

    text: str
    token: int | None = None
    reply: Reply | None = None
