"""Rows of weights as the matrix-vector kernels read them: dense, in MLX's affine packing, or balanced 2-bit.

A product's operands are always three arrays; `none` stands for one that is absent.

w        [N, K] float16, bfloat16 or float32; or [N, K bits / 32] uint32, weight i of a word at its bits `bits i`
scales   [N, K / G], G of 32, 64 or 128; [N] for one scale a row; none for dense rows
offsets  as scales, w = scale q + offset (MLX calls them biases); none for balanced rows, w = scale (q - 1.5)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import mlx.core as mx

BITS = (2, 4, 8, 16, 32)
GROUPS = (0, 32, 64, 128)


@cache
def none(dtype: mx.Dtype = mx.float32) -> mx.array:
    """An absent operand, [1, 8] as no present one is; a kernel wants it in the type that a present one would have."""
    absent = mx.zeros((1, 8), dtype=dtype)
    mx.eval(absent)
    return absent


def is_none(array: mx.array) -> bool:
    return array.shape == (1, 8)


@dataclass(frozen=True, slots=True)
class Format:
    """How rows are packed; `group` 0 is one scale a row, or dense rows."""

    bits: int
    group: int
    balanced: bool

    @property
    def template(self) -> tuple[tuple[str, Any], ...]:
        return (("BITS", self.bits), ("G", self.group), ("BALANCED", int(self.balanced)))


def format_of(k: int, w: mx.array, scales: mx.array, offsets: mx.array) -> Format:
    """The packing of rows with K weights, from their arrays' shapes and types."""
    if w.dtype != mx.uint32:
        return Format(8 * w.dtype.size, 0, False)
    group = 0 if scales.ndim == 1 else k // scales.shape[1]
    return Format(w.shape[1] * 32 // k, group, is_none(offsets))


def value_type(w: mx.array, scales: mx.array) -> mx.Dtype:
    """What dense weights, or packed ones' scales, are kept in."""
    return scales.dtype if w.dtype == mx.uint32 else w.dtype


def dense_rows(k: int, w: mx.array, scales: mx.array, offsets: mx.array) -> mx.array:
    """The rows [N, K] in float32."""
    kind = format_of(k, w, scales, offsets)
    if kind.bits >= 16:
        return w.astype(mx.float32)
    wide, group = scales.astype(mx.float32), kind.group
    if not group:
        group = next(size for size in (128, 64, 32) if k % size == 0)
        wide = mx.broadcast_to(wide[:, None], (w.shape[0], k // group))
    low = -1.5 * wide if kind.balanced else offsets.astype(mx.float32)
    return mx.dequantize(w, wide, low, group, kind.bits)


def product(x: mx.array, w: mx.array, scales: mx.array, offsets: mx.array) -> mx.array:
    """W x in float32 for x [K]."""
    return (x[None] @ dense_rows(x.shape[0], w, scales, offsets).T)[0]


def random_rows(n: int, k: int, kind: Format, dtype: mx.Dtype) -> tuple[mx.array, mx.array, mx.array]:
    """Random w, scales and offsets of a format, the same ones each time; rows have a norm of about 1."""
    keys = mx.random.split(mx.random.key(n + k), 3)
    if kind.bits >= 16:
        return (mx.random.normal((n, k), key=keys[0]) / k**0.5).astype(dtype), none(dtype), none(dtype)
    w = mx.random.randint(0, 1 << 16, (2, n, k * kind.bits // 32), mx.uint32, keys[0])
    shape = (n, k // kind.group) if kind.group else (n,)
    scales = mx.random.uniform(0.5, 1.5, shape, key=keys[1]) * (4 / (1 << kind.bits) / k**0.5)
    middle = (1 << kind.bits) / 2 - 0.5
    offsets = none(dtype) if kind.balanced else (-scales * middle * mx.random.uniform(0.8, 1.2, shape, key=keys[2]))
    return w[0] << 16 | w[1], scales.astype(dtype), offsets if kind.balanced else offsets.astype(dtype)
