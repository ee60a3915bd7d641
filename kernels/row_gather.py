"""Rows by index, out of one array or of several with the same rows: what pruning a prefill leaves.

array  [n, ...], any type
index  [m] int32, each from 0 to n - 1
result [m, ...]
"""

from __future__ import annotations

import mlx.core as mx


def gather_rows(index: mx.array, *arrays: mx.array) -> list[mx.array]:
    """Return rows `index` of each array."""
    return [mx.take(array, index, axis=0) for array in arrays]
