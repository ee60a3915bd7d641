"""From logits to a token: logit processors, then a sampler, both plain callables on the device.

Order as in Hugging Face's generate(): bias, repetition penalty, temperature, top-k, top-p, min-p, draw.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Sequence

import mlx.core as mx

from russet.engine.errors import InvalidOptionError
from russet.engine.options import GenerationOptions

Sampler = Callable[[mx.array], mx.array]
"""Logits [1, vocab] -> token ids [1]."""

Filter = Callable[[mx.array], mx.array]
"""Logits -> logits with the tokens that must not be drawn at -inf."""


def make_sampler(options: GenerationOptions, prompt: Sequence[int], vocab_size: int) -> Sampler:
    """The sampler for one reply; it remembers what it drew where a repetition penalty asks for that.

    Logits may be of any float dtype; they are processed in float32. Greedy ties go to the lowest id.
    """
    steps: list[Filter] = []
    if options.logit_bias:
        steps.append(_bias(options, vocab_size))
    penalty = _RepetitionPenalty(options, prompt) if options.repetition_penalty != 1.0 else None
    draw = _draw(options)

    def sample(logits: mx.array) -> mx.array:
        logits = logits.astype(mx.float32)
        for step in steps:
            logits = step(logits)
        if penalty is None:
            return draw(logits)
        token = draw(penalty(logits))
        penalty.saw(token)
        return token

    return sample


def _draw(options: GenerationOptions) -> Sampler:
    if options.temperature == 0:
        return lambda logits: mx.argmax(logits, axis=-1)
    filters = _filters(options)
    key = mx.random.key(options.seed if options.seed is not None else secrets.randbits(63))

    def draw(logits: mx.array) -> mx.array:
        nonlocal key
        key, now = mx.random.split(key)
        logits = logits / options.temperature
        for keep in filters:
            logits = keep(logits)
        return mx.random.categorical(logits, key=now)

    return draw


def _filters(options: GenerationOptions) -> list[Filter]:
    filters: list[Filter] = []
    if options.top_k:
        filters.append(lambda logits: top_k(logits, options.top_k))
    if options.top_p < 1:
        filters.append(lambda logits: top_p(logits, options.top_p))
    if options.min_p > 0:
        filters.append(lambda logits: min_p(logits, options.min_p))
    return filters


def top_k(logits: mx.array, k: int) -> mx.array:
    """Keep the `k` largest; ties with the last of them stay."""
    if k >= logits.shape[-1]:
        return logits
    least = mx.topk(logits, k, axis=-1).min(axis=-1, keepdims=True)
    return mx.where(logits < least, -math.inf, logits)


def top_p(logits: mx.array, p: float) -> mx.array:
    """Keep the fewest tokens whose probabilities add up to `p` (nucleus sampling, arXiv 1904.09751)."""
    ordered = mx.sort(logits, axis=-1)[..., ::-1]
    probabilities = mx.softmax(ordered, axis=-1)
    before = mx.cumsum(probabilities, axis=-1) - probabilities
    least = mx.where(before < p, ordered, math.inf).min(axis=-1, keepdims=True)
    return mx.where(logits < least, -math.inf, logits)


def min_p(logits: mx.array, p: float) -> mx.array:
    """Keep the tokens at least `p` times as likely as the likeliest (arXiv 2407.01082)."""
    return mx.where(logits < logits.max(axis=-1, keepdims=True) + math.log(p), -math.inf, logits)


def _bias(options: GenerationOptions, vocab_size: int) -> Filter:
    outside = [token for token in options.logit_bias if not 0 <= token < vocab_size]
    if outside:
        raise InvalidOptionError(
            f"logit_bias names token {outside[0]}; the model's vocabulary has ids from 0 to {vocab_size - 1}."
        )
    index = mx.array(list(options.logit_bias))
    values = mx.array(list(options.logit_bias.values()), dtype=mx.float32)
    return lambda logits: logits.at[:, index].add(values)


class _RepetitionPenalty:
    """Divides positive logits of recent tokens by the penalty and multiplies negative ones (arXiv 1909.05858)."""

    def __init__(self, options: GenerationOptions, prompt: Sequence[int]) -> None:
        self._penalty = options.repetition_penalty
        self._window = options.repetition_window
        self._recent = mx.array(list(prompt)[-self._window :], dtype=mx.int32)

    def __call__(self, logits: mx.array) -> mx.array:
        if self._recent.size == 0:
            return logits
        known = logits[:, self._recent]
        logits[:, self._recent] = mx.where(known < 0, known * self._penalty, known / self._penalty)
        return logits

    def saw(self, token: mx.array) -> None:
        """Add what was drawn, without waiting for it."""
        self._recent = mx.concatenate([self._recent, token.astype(mx.int32)])[-self._window :]
