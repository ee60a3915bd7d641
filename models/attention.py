"""Attention of queries over cached keys and values, with grouped heads: by softmax or by sigmoid."""

from __future__ import annotations

import math
from collections.abc import Callable

import mlx.core as mx

from russet.engine.cache import Mask
from russet.kernels.sigmoid_attention import sigmoid_attention
from russet.models.config import LayerSpec

Attend = Callable[[mx.array, mx.array, mx.array, float, Mask], mx.array]
"""Queries [batch, heads, rows, dim], keys and values [batch, kv_heads, n, dim], scale, mask -> as queries."""

BLOCK = 64
"""Query rows that a CPU scores at once: of 32, 64 and 128 the fastest at 512 rows on an EPYC core."""


def attention(spec: LayerSpec, gpu: bool) -> Attend:
    """What a layer attends by, on a GPU or on a CPU."""
    if spec.attention == "sigmoid":
        return sigmoid(spec.sigmoid_bias)
    return fused if gpu else for_cpu


def sigmoid(bias: float | None) -> Attend:
    """sigmoid(scale Q K^T + b) V of arXiv 2409.04431; b is `bias`, or -log of the number of keys that a row sees."""

    def attend(queries: mx.array, keys: mx.array, values: mx.array, scale: float, mask: Mask) -> mx.array:
        return sigmoid_attention(queries, keys, values, scale, bias, mask)

    return attend


def fused(queries: mx.array, keys: mx.array, values: mx.array, scale: float, mask: Mask) -> mx.array:
    """MLX's own operation: one launch on a GPU."""
    return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale, mask=mask)


def for_cpu(queries: mx.array, keys: mx.array, values: mx.array, scale: float, mask: Mask) -> mx.array:
    """What MLX's operation computes, with less work where it runs as plain operations, as it does on a CPU."""
    if queries.shape[2] == 1:
        return _one_row(queries, keys, values, scale, mask)
    if isinstance(mask, str) and queries.shape[2] > BLOCK:
        return _by_blocks(queries, keys, values, scale)
    return fused(queries, keys, values, scale, mask)


def _one_row(queries: mx.array, keys: mx.array, values: mx.array, scale: float, mask: Mask) -> mx.array:
    """A product a key head, where MLX reads the keys once for every query head."""
    batch, heads, _, dim = queries.shape
    groups = keys.shape[1]
    scores = (queries.reshape(batch, groups, heads // groups, dim) * scale) @ keys.swapaxes(-1, -2)
    if isinstance(mask, mx.array):
        scores = mx.where(mask, scores, -math.inf)
    return (mx.softmax(scores, axis=-1) @ values).reshape(batch, heads, 1, dim)


def _by_blocks(queries: mx.array, keys: mx.array, values: mx.array, scale: float) -> mx.array:
    """Causal attention a block of rows at a time, over the keys that its last row sees: the rest is not scored."""
    rows, hidden = queries.shape[2], keys.shape[2] - queries.shape[2]
    mixed = []
    for start in range(0, rows, BLOCK):
        end = min(start + BLOCK, rows)
        seen = slice(0, hidden + end)
        block = queries[:, :, start:end]
        mixed.append(fused(block, keys[:, :, seen], values[:, :, seen], scale, "causal"))
    return mx.concatenate(mixed, axis=2)
