"""Russet as a contender: its own prefill and token loop, with nothing that stops it early."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import mlx.core as mx

from russet.bench.base import OURS, Measurement, Text, measure
from russet.engine.decode import Step, decode
from russet.engine.encoding import check_ids
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

    def __init__(self, model: Timed, weights_bytes: int, prefill: Prefill | None = None) -> None:
        self.name = OURS
        self.model = model
        self.weights_bytes = weights_bytes
        self.prefill = prefill or Exact()
        self.setting = f"{compute_dtype(model)}, {self.prefill.name} prefill"

    def run(self, tokens: Sequence[int], generate: int) -> Measurement:
        return timed(self.model, self.prefill, PromptTokens(tokens), generate, self.weights_bytes)[0]

    def step_graph(self, tokens: int, steps: int) -> mx.array:
        """The logits of the step after `tokens` of a prompt and `steps` steps, not evaluated."""
        cache = self.model.decoder.new_cache(self.model.kv_bits)
        cache.reserve(tokens + steps + 1)
        self.model.decoder.extend(mx.zeros((1, tokens), mx.int32), cache)
        step, token = self.model.step(cache), mx.zeros((1, 1), mx.int32)
        for _ in range(steps):
            mx.eval(step(token))
        return step(token)


def timed(
    model: Timed,
    prefill: Prefill,
    prompt: PromptTokens | str,
    generate: int,
    weights_bytes: int,
    text: Text | None = None,
) -> tuple[Measurement, Prefilled]:
    """Measure one run of exactly `generate` greedy tokens, and hand back what the strategy did; a text needs `text`."""
    found: list[Prefilled] = []

    def start(tokens: Sequence[int]) -> Iterator[int]:
        whole = prompt if isinstance(prompt, PromptTokens) else PromptTokens(tokens)
        prefilled, drawn = greedy(model, prefill, whole, generate)
        found.append(prefilled)
        return drawn

    measured = measure(prompt.tokens if isinstance(prompt, PromptTokens) else prompt, start, weights_bytes, text)
    (prefilled,) = found
    return measured, prefilled


def greedy(model: Timed, prefill: Prefill, prompt: PromptTokens, generate: int) -> tuple[Prefilled, Iterator[int]]:
    """Prefill an empty cache: what the strategy did, and the `generate` greedy tokens that follow, not drawn yet."""
    check_ids(prompt.tokens, model.vocab_size)
    cache = model.decoder.new_cache(model.kv_bits)
    cache.reserve(positions_of(prefill, prompt) + min(generate, RESERVED_TOKENS))
    sample = make_sampler(GenerationOptions(), prompt.tokens, model.vocab_size)
    prefilled = prefill(model.decoder, prompt, cache)
    return prefilled, decode(model.step(cache, prefilled.extend), prefilled.logits, sample, generate)


def compute_dtype(model: Timed) -> str:
    """The number format of a model's decoder, in words."""
    dtype = getattr(model.decoder, "dtype", None)
    return str(dtype).removeprefix("mlx.core.") if dtype else f"through {runtime_of(model.decoder)}"
