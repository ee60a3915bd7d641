"""Softmax attention of queries over cached keys and values, with grouped heads."""

from __future__ import annotations

import math
from collections.abc import Callable

import mlx.core as mx

from russet.engine.cache import Mask

Attend = Callable[[mx.array, mx.array, mx.array, float, Mask], mx.array]
"""Queries [batch, heads, rows, dim], keys and values [batch, kv_heads, n, dim], scale, mask -> as queries."""


def fused(queries: mx.array, keys: mx.array, values: mx.array, scale: float, mask: Mask) -> mx.array:
    """MLX's own operation: one launch on a GPU."""
    return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale, mask=mask)


def grouped(queries: mx.array, keys: mx.array, values: mx.array, scale: float, mask: Mask) -> mx.array:
    """For a CPU: one query row takes a product a key head, where MLX reads the keys once for every query head."""
    batch, heads, rows, dim = queries.shape
    if rows > 1:
        return fused(queries, keys, values, scale, mask)
    groups = keys.shape[1]
    scores = (queries.reshape(batch, groups, heads // groups, dim) * scale) @ keys.swapaxes(-1, -2)
    if isinstance(mask, mx.array):
        scores = mx.where(mask, scores, -math.inf)
    return (mx.softmax(scores, axis=-1) @ values).reshape(batch, heads, 1, dim)
