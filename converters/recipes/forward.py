"""The decoder over arrays that are being trained: whole sequences, no cache, every operation with a gradient.

It is the one decoder of models/decoder.py, built inside the function that MLX differentiates and compiles.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import mlx.core as mx
import numpy as np

from russet.converters.recipes.source import Params
from russet.engine.cache import KVCache, Mask
from russet.models.array_weights import ArrayWeights
from russet.models.config import DecoderConfig
from russet.models.decoder import Decoder, Probe
from russet.models.loading import Builder
from russet.models.rope import Positions


@dataclass(frozen=True, slots=True)
class Rows:
    """Hidden rows [batch, length, hidden] after the last norm, and each layer's output where it was kept."""

    final: mx.array
    layers: list[mx.array]


def decoder_of(config: DecoderConfig, arrays: Params, dtype: mx.Dtype) -> Decoder:
    """A decoder over traced arrays, which it casts to `dtype`."""
    return Builder(config, ArrayWeights(arrays), dtype, expand=True, traced=True).build()


class FullSequence:
    """What stands in for a cache where a sequence is there as a whole: each slot holds its rows and nothing else."""

    def __init__(self, config: DecoderConfig) -> None:
        self._source = [i if layer.kv_source is None else layer.kv_source for i, layer in enumerate(config.layers)]
        self.slots = {i: SequenceRows(config.layers[i].window) for i in set(self._source)}

    def slot(self, layer: int) -> SequenceRows:
        return self.slots[self._source[layer]]


class SequenceRows:
    """Keys and values of one layer, [batch, kv_heads, length, head_dim]."""

    def __init__(self, window: int | None) -> None:
        self.window = window
        self.rows: tuple[mx.array, mx.array] | None = None

    def append(self, keys: mx.array, values: mx.array, positions: Positions) -> None:
        self.rows = keys, values

    def read(self, positions: Positions, queries: int) -> tuple[mx.array, mx.array, Mask]:
        assert self.rows is not None
        if self.window is None or queries <= self.window:
            return *self.rows, "causal"
        apart = np.arange(queries)[:, None] - np.arange(queries)[None, :]
        return *self.rows, mx.array((apart >= 0) & (apart < self.window))  # pyright: ignore[reportArgumentType]


def hidden_rows(
    decoder: Decoder,
    tokens: mx.array,
    *,
    keep: bool = False,
    probe: Probe | None = None,
    cache: FullSequence | None = None,
) -> Rows:
    """Token ids [batch, length] through all layers and the last norm; `keep` keeps every layer's output."""
    # The decoder asks of its cache no more than the two calls of a slot.
    rows = cast(KVCache, cache or FullSequence(decoder.config))
    h, count = decoder.embed(tokens), len(decoder.blocks)
    if not keep:
        return Rows(decoder.norm(decoder.run(h, range(count), 0, rows, probe=probe)), [])
    return rows_after(decoder, h, 0, rows, probe)


def rows_after(
    decoder: Decoder, h: mx.array, first: int, cache: FullSequence | KVCache, probe: Probe | None = None
) -> Rows:
    """Rows [batch, length, hidden] through the layers from `first` on and the last norm, all outputs kept."""
    kept = []
    for i in range(first, len(decoder.blocks)):
        h = decoder.run(h, range(i, i + 1), 0, cast(KVCache, cache), probe=probe)
        kept.append(h)
    return Rows(decoder.norm(h), kept)


def head_of(decoder: Decoder) -> mx.array:
    """The head's weight [vocab, hidden]."""
    (transposed,) = decoder.output.arrays
    return transposed.T
