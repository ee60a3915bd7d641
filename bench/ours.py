"""Russet as a contender: its own prefill and token loop, with nothing that stops it early."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import mlx.core as mx

from russet.bench.base import Measurement, measure
from russet.engine.decode import Step, decode
from russet.engine.generation import RESERVED_TOKENS
from russet.engine.options import GenerationOptions
from russet.engine.prefill.base import Extend, Extendable, Prefill, Prefilled, PromptTokens, positions_of
from russet.engine.prefill.exact import Exact
from russet.engine.sampling import make_sampler
from russet.models.runtimes.base import runtime_of


class Timed(Protocol):
    """What timing needs of a `russet.Model`."""

    @property
    def decoder(self) -> Extendable: ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def kv_bits(self) -> int: ...

    def step(self, cache: Any, extend: Extend | None = None) -> Step: ...


class Russet:
    """A loaded model, `weights_bytes` of which are in memory."""

    name = "russet"

    def __init__(self, model: Timed, weights_bytes: int, prefill: Prefill | None = None) -> None:
        self.model = model
        self.weights_bytes = weights_bytes
        self.prefill = prefill or Exact()
        self.setting = f"{_dtype(model)}, {self.prefill.name} prefill"

    def run(self, tokens: Sequence[int], generate: int) -> Measurement:
        prompt = PromptTokens(tokens)
        return measure(tokens, lambda: greedy(self.model, self.prefill, prompt, generate)[1], self.weights_bytes)

    def step_graph(self, tokens: int, steps: int) -> mx.array:
        """The logits of the step after `tokens` of a prompt and `steps` steps, not evaluated."""
        cache = self.model.decoder.new_cache(self.model.kv_bits)
        cache.reserve(tokens + steps + 1)
        self.model.decoder.extend(mx.zeros((1, tokens), mx.int32), cache)
        step, token = self.model.step(cache), mx.zeros((1, 1), mx.int32)
        for _ in range(steps):
            mx.eval(step(token))
        return step(token)


def greedy(model: Timed, prefill: Prefill, prompt: PromptTokens, generate: int) -> tuple[Prefilled, Iterator[int]]:
    """Prefill an empty cache: what the strategy did, and the `generate` greedy tokens that follow, not drawn yet."""
    cache = model.decoder.new_cache(model.kv_bits)
    cache.reserve(positions_of(prefill, prompt) + min(generate, RESERVED_TOKENS))
    sample = make_sampler(GenerationOptions(), prompt.tokens, model.vocab_size)
    prefilled = prefill(model.decoder, prompt, cache)
    return prefilled, decode(model.step(cache, prefilled.extend), prefilled.logits, sample, generate)


def _dtype(model: Timed) -> str:
    dtype = getattr(model.decoder, "dtype", None)
    return str(dtype).removeprefix("mlx.core.") if dtype else f"through {runtime_of(model.decoder)}"
