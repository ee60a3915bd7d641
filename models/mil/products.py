"""MIL operations that multiply matrices, and those that expand compressed ones (iOS 18 semantics)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from russet.models.mil.elementwise import Operation, wide


def linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    y = wide(x) @ wide(weight).T
    return y if bias is None else y + wide(bias)


def matmul(x: np.ndarray, y: np.ndarray, transpose_x: Any = False, transpose_y: Any = False) -> np.ndarray:
    x, y = wide(x), wide(y)
    return (x.swapaxes(-1, -2) if transpose_x else x) @ (y.swapaxes(-1, -2) if transpose_y else y)


def scaled_dot_product_attention(
    query: np.ndarray, key: np.ndarray, value: np.ndarray, attn_mask: np.ndarray | None = None
) -> np.ndarray:
    """softmax(Q K^T / sqrt(d) + mask) V; a boolean mask says what is seen. Leading axes must be equal."""
    if not query.shape[:-2] == key.shape[:-2] == value.shape[:-2]:
        raise IndexError(f"attention of {query.shape} over {key.shape} and {value.shape}: MIL does not broadcast heads")
    scores = wide(query) @ wide(key).swapaxes(-1, -2) / np.float32(math.sqrt(query.shape[-1]))
    if attn_mask is not None:
        scores = np.where(attn_mask, scores, -np.inf) if attn_mask.dtype == bool else scores + wide(attn_mask)
    grown = np.exp(scores - scores.max(-1, keepdims=True))
    return (grown / grown.sum(-1, keepdims=True)) @ wide(value)


def blockwise_shift_scale(data: np.ndarray, scale: np.ndarray, offset: np.ndarray | None = None) -> np.ndarray:
    """(data - offset) * scale, where scale and offset have one number for each block of data."""
    shifted = data.astype(np.float32)
    if offset is not None:
        shifted = shifted - _spread(offset, data.shape).astype(np.float32)
    return shifted * _spread(wide(scale), data.shape)


def lut_to_dense(indices: np.ndarray, lut: np.ndarray, vector_axis: Any = None) -> np.ndarray:
    """Entries of look-up tables, `lut` [groups..., entries, vector]: one table for each group of indices."""
    groups = [np.arange(n) // (n // lut.shape[i]) for i, n in enumerate(indices.shape)]
    dense = lut[(*np.ix_(*groups), indices.astype(np.int64))]
    if lut.shape[-1] == 1:
        return dense[..., 0]
    axis = int(vector_axis) % indices.ndim
    shape = [n * (lut.shape[-1] if i == axis else 1) for i, n in enumerate(indices.shape)]
    return np.moveaxis(dense, -1, axis + 1).reshape(shape)


def _spread(blocks: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    for axis, length in enumerate(shape):
        if blocks.shape[axis] not in (1, length):
            blocks = np.repeat(blocks, length // blocks.shape[axis], axis)
    return blocks


PRODUCTS: dict[str, Operation] = {
    "constexpr_blockwise_shift_scale": blockwise_shift_scale,
    "constexpr_lut_to_dense": lut_to_dense,
    "linear": linear,
    "matmul": matmul,
    "scaled_dot_product_attention": scaled_dot_product_attention,
}
