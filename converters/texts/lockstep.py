"""Many rows of text from one model at once, all at the same position, so that no row waits or is padded.

A GPU gets its steps without a wait between them: rows go in two halves by turns, and while one computes, the host
prepares the other. Either half waits for its own last step only, after which nothing holds its buffers of keys and
values and MLX writes into them in place; a step that is queued behind the last one would copy them whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import mlx.core as mx
import numpy as np

from russet.converters.recipes.source import Source
from russet.engine.cache import KVCache
from russet.engine.device import on_gpu
from russet.engine.sampling import min_p
from russet.models.array_weights import ArrayWeights
from russet.models.attention import attention
from russet.models.config import DecoderConfig
from russet.models.decoder import Decoder
from russet.models.loading import Builder
from russet.models.rope import Positions

BLOCK = 64
"""Attention reads rows in whole blocks: products of other widths have no aligned rows, which are slow on a GPU."""

SAMPLED = -1
"""In a plan of rows, a position whose token is drawn."""

Draw = Callable[[mx.array, mx.array, mx.array], mx.array]
"""Logits [batch, vocab], which rows are plain text [batch, 1], and a random key -> token ids [batch]."""


@dataclass(frozen=True)
class Plan:
    """What a batch of rows begins with: `tokens` [batch, length], int32, SAMPLED where they are drawn.

    In rows where `plain` [batch] holds no special token is drawn.
    """

    tokens: np.ndarray
    plain: np.ndarray

    def part(self, start: int, end: int) -> Plan:
        return Plan(self.tokens[start:end], self.plain[start:end])


def lockstep_decoder(source: Source, dtype: mx.Dtype) -> Decoder:
    """The model with dense weights, each key head's rows read once for all its query heads."""
    decoder = Builder(source.config, ArrayWeights(source.weights), dtype, expand=True).build()
    for block in decoder.blocks:
        block.attend = attention(block.spec, gpu=False)
    return decoder


class LockstepCache:
    """Keys and values of `batch` rows of at most `length` tokens; it has what a decoder asks of a cache."""

    def __init__(self, config: DecoderConfig, batch: int, length: int, dtype: mx.Dtype) -> None:
        self._source = [i if layer.kv_source is None else layer.kv_source for i, layer in enumerate(config.layers)]
        self._masks: dict[int | None, mx.array] = {}
        self._at, self._length = 0, length
        self._slots = {
            i: _Slot(self, (batch, config.layers[i].kv_heads, length, config.layers[i].head_dim), dtype)
            for i in set(self._source)
        }
        for i, slot in self._slots.items():
            slot.window = config.layers[i].window

    def slot(self, layer: int) -> _Slot:
        return self._slots[self._source[layer]]

    def go_to(self, position: int) -> None:
        """Where the next rows are; whatever was stored from there on is forgotten."""
        self._at = position
        self._masks.clear()

    @property
    def rows(self) -> int:
        """How many rows attention reads, those behind the position among them."""
        return min(self._length, -(-(self._at + 1) // BLOCK) * BLOCK)

    def mask(self, window: int | None) -> mx.array:
        """Which of these the position sees, [1, rows]."""
        if window not in self._masks:
            apart = self._at - np.arange(self.rows)[None, :]
            self._masks[window] = mx.array((apart >= 0) & (apart < (window or math.inf)))  # pyright: ignore[reportArgumentType]
        return self._masks[window]


class _Slot:
    def __init__(self, cache: LockstepCache, shape: tuple[int, ...], dtype: mx.Dtype) -> None:
        self.window: int | None = None
        self._cache = cache
        self._keys, self._values = mx.zeros(shape, dtype), mx.zeros(shape, dtype)

    def append(self, keys: mx.array, values: mx.array, positions: Positions) -> None:
        assert isinstance(positions, int)
        self._keys[:, :, positions : positions + 1] = keys
        self._values[:, :, positions : positions + 1] = values

    def read(self, positions: Positions, queries: int) -> tuple[mx.array, mx.array, mx.array]:
        rows = self._cache.rows
        return self._keys[:, :, :rows], self._values[:, :, :rows], self._cache.mask(self.window)


def make_draw(vocab_size: int, special: Sequence[int], temperature: float, least: float) -> Draw:
    """Drawing at a temperature from the tokens at least `least` times as likely as the likeliest.

    `special` are ids below `vocab_size` that plain rows do not draw.
    """
    marks = np.zeros((1, vocab_size), dtype=bool)
    marks[0, list(special)] = True
    banned = mx.array(marks)

    def draw(logits: mx.array, plain: mx.array, key: mx.array) -> mx.array:
        logits = logits.astype(mx.float32) * (1 / temperature)
        logits = mx.where(mx.logical_and(plain, banned), -math.inf, logits)
        if least > 0:
            logits = min_p(logits, least)
        return mx.random.categorical(logits, key=key).astype(mx.int32)

    return mx.compile(draw) if on_gpu() else draw


def steps(decoder: Decoder, cache: LockstepCache, plan: Plan, draw: Draw, key: mx.array) -> Iterator[mx.array]:
    """The tokens [batch] of one position after another; those that the plan has, and drawn ones.

    Each is on its way on the device when it is yielded.
    """
    length = plan.tokens.shape[1]
    keys, planned = mx.random.split(key, length), mx.array(np.ascontiguousarray(plan.tokens.T))
    plain, token = mx.array(plan.plain[:, None]), planned[0]
    mx.eval(keys, plain, token)
    yield token
    rows, layers = cast(KVCache, cache), range(len(decoder.blocks))
    for at in range(length - 1):
        mx.eval(token)
        cache.go_to(at)
        h = decoder.run(decoder.embed(token[:, None]), layers, at, rows)
        token = draw(decoder.head(h)[:, 0], plain, keys[at])
        if (plan.tokens[:, at + 1] != SAMPLED).any():
            token = mx.where(planned[at + 1] == SAMPLED, token, planned[at + 1])
        mx.async_eval(token)
        yield token


class Lanes:
    """The rows of a batch in `lots` lots, with room for them that every round of rows uses again."""

    def __init__(self, source: Source, batch: int, length: int, draw: Draw, dtype: mx.Dtype, lots: int) -> None:
        self._decoder = lockstep_decoder(source, dtype)
        self._sizes = [batch // lots + (lot < batch % lots) for lot in range(lots)]
        self._caches = [LockstepCache(source.config, size, length, dtype) for size in self._sizes]
        self._draw = draw

    def round(self, plan: Plan, seed: int, advance: Callable[[int], bool]) -> np.ndarray:
        """Rows [batch, length] by a plan; fewer positions where `advance`, told of each one, says to stop.

        The same plan and seed give the same rows on the same device.
        """
        ends = np.cumsum(self._sizes)
        parts = [plan.part(end - size, end) for end, size in zip(ends, self._sizes, strict=True)]
        keys = mx.random.split(mx.random.key(seed), len(parts))
        lanes = [
            steps(self._decoder, cache, part, self._draw, key)
            for cache, part, key in zip(self._caches, parts, keys, strict=True)
        ]
        columns: list[list[mx.array]] = [[] for _ in lanes]
        for at, tokens in enumerate(zip(*lanes, strict=True)):
            for lane, token in zip(columns, tokens, strict=True):
                lane.append(token)
            if not advance(at):
                break
        return np.concatenate([np.array(mx.stack(lane, axis=1)) for lane in columns])
