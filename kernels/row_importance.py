"""How much the last query attends to each key: softmax over all keys, mean over heads (LazyLLM, arXiv 2407.14057).

queries  [1, heads, 1, dim], keys [1, kv_heads, n, dim], in one floating type; heads a multiple of kv_heads
result   [n] float32, sums to 1
"""

from __future__ import annotations

import mlx.core as mx


def last_row_importance(queries: mx.array, keys: mx.array, scale: float) -> mx.array:
    """Return the mean over heads of softmax(scale q k^T) as float32 [n]; products and sums are in float32.

    Raises ValueError if there is more than one query row, or the shapes do not match.
    """
    batch, heads, rows, dim = queries.shape
    if (batch, rows) != (1, 1) or keys.shape[0] != 1 or keys.shape[3] != dim or heads % keys.shape[1]:
        raise ValueError(f"queries {queries.shape} and keys {keys.shape} do not make one row of attention.")
    return _reference(queries, keys, mx.full((8,), scale, mx.float32))[0]


def _reference(queries: mx.array, keys: mx.array, constants: mx.array) -> list[mx.array]:
    kv_heads, dim = keys.shape[1], keys.shape[3]
    grouped = queries.reshape(kv_heads, -1, dim).astype(mx.float32) * constants[0]
    probabilities = mx.softmax(grouped @ keys[0].astype(mx.float32).swapaxes(-1, -2), axis=-1)
    return [probabilities.reshape(-1, keys.shape[2]).mean(axis=0)]
