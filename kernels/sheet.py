"""All that a matrix-vector kernel reads of one layer in one array: weights, scales, offsets, bias, and norms' gains.

MLX spends about half a microsecond of host time on each input of a kernel (CUDA, one H100), which bounds decoding.
A sheet is uint32 [N, R]: N rows of weights, and R what makes room for all parts. The parts follow one another, each
from a 16-byte boundary; rows are not interleaved, so that every part is an array too, without a copy (`parts_of`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from russet.kernels.packed import Format, none, random_rows

_ALIGNED = 4
"""Words that parts are aligned to."""


@dataclass(frozen=True, slots=True)
class Form:
    """What lies in a sheet: rows of `k` weights packed as `kind`, other numbers in `dtype`, and `gains` norms."""

    k: int
    kind: Format
    dtype: mx.Dtype
    bias: bool = False
    gains: int = 0

    @property
    def template(self) -> tuple[tuple[str, Any], ...]:
        return (("T", self.dtype), *self.kind.template, ("BIAS", int(self.bias)))


@dataclass(frozen=True, slots=True)
class Parts:
    """A sheet's parts as arrays on the same memory, as packed.py describes them; absent ones are none."""

    w: mx.array
    scales: mx.array
    offsets: mx.array
    bias: mx.array
    gains: tuple[mx.array, ...]

    @property
    def rows(self) -> tuple[mx.array, mx.array, mx.array]:
        return self.w, self.scales, self.offsets


def make_sheet(form: Form, parts: Parts) -> mx.array:
    """Lay the parts out in one array."""
    present = [parts.w]
    if form.kind.bits < 16:
        present += [parts.scales] if form.kind.balanced else [parts.scales, parts.offsets]
    present += [parts.bias] if form.bias else []
    words = [_words(array) for array in (*present, *parts.gains)]
    rows = parts.w.shape[0]
    used = sum(array.size for array in words)
    width = -(-used // rows)
    return mx.concatenate([*words, mx.zeros((width * rows - used,), mx.uint32)]).reshape(rows, width)


def parts_of(form: Form, sheet: mx.array) -> Parts:
    """The parts of a sheet."""
    rows, kind, flat = sheet.shape[0], form.kind, sheet.reshape(-1)
    at = 0

    def take(shape: tuple[int, ...], dtype: mx.Dtype) -> mx.array:
        nonlocal at
        size = 1
        for extent in shape:
            size *= extent
        words = -(-size * dtype.size // 4)
        array = flat[at : at + words].view(dtype)[:size].reshape(shape)
        at += -(-words // _ALIGNED) * _ALIGNED
        return array

    packed = kind.bits < 16
    w = take((rows, form.k * kind.bits // 32), mx.uint32) if packed else take((rows, form.k), form.dtype)
    groups = (rows, form.k // kind.group) if kind.group else (rows,)
    scales = take(groups, form.dtype) if packed else none(form.dtype)
    offsets = take(groups, form.dtype) if packed and not kind.balanced else none(form.dtype)
    bias = take((rows,), form.dtype) if form.bias else none(form.dtype)
    return Parts(w, scales, offsets, bias, tuple(take((form.k,), form.dtype) for _ in range(form.gains)))


def random_sheet(form: Form, rows: int) -> mx.array:
    """A sheet of random rows, the same ones each time; gains are around 1, the bias is normal."""
    keys = mx.random.split(mx.random.key(rows), 1 + form.gains)
    bias = mx.random.normal((rows,), key=keys[0]).astype(form.dtype) if form.bias else none(form.dtype)
    gains = tuple(mx.random.uniform(0.5, 1.5, (form.k,), key=key).astype(form.dtype) for key in keys[1:])
    return make_sheet(form, Parts(*random_rows(rows, form.k, form.kind, form.dtype), bias, gains))


def _words(array: mx.array) -> mx.array:
    """An array as words, up to a boundary."""
    flat = array.reshape(-1)
    per_word = 4 // array.dtype.size
    missing = -flat.size % (_ALIGNED * per_word)
    if missing:
        flat = mx.concatenate([flat, mx.zeros((missing,), array.dtype)])
    return flat.view(mx.uint32)


def example_forms(k: int, gains: int) -> Sequence[Form]:
    """Every packing with float16, and each of the other types with and without packing; some have a bias."""
    half = [Format(16, 0, False), Format(2, 0, True), Format(2, 64, True)]
    half += [Format(bits, group, False) for bits in (2, 4, 8) for group in (32, 64, 128)]
    forms = [Form(k, kind, mx.float16, kind.group == 64, gains) for kind in half]
    for dtype in (mx.bfloat16, mx.float32):
        kinds = (Format(8 * dtype.size, 0, False), Format(4, 64, False), Format(8, 64, False))
        forms += [Form(k, kind, dtype, kind.bits == 8, gains) for kind in kinds]
    return forms
