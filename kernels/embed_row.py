"""One row of an embedding table, widened and scaled, in one launch.

token  [1] integer
w, scales, offsets  the table [V, K] as in packed.py, K a multiple of 32
out    [K] float32
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial

import mlx.core as mx

from russet.kernels.backend import Backend
from russet.kernels.base import Inputs, Kernel, Launch
from russet.kernels.matvec_launch import example_formats, float_bits
from russet.kernels.packed import Format, dense_rows, format_of, random_rows, value_type

_THREADS = 128


@cache
def embed_row(k: int, scale: float) -> Kernel:
    """The kernel for rows of K numbers that are multiplied by `scale`."""
    return Kernel(
        name="embed_row",
        body="embed_row.metal",
        headers=("matvec.h",),
        inputs=("token", "w", "scales", "offsets"),
        outputs=("out",),
        reference=partial(_reference, k, scale),
        launch=partial(_launch, k, scale),
        sample=partial(_sample, k),
        examples=partial(_examples, k),
        tolerance={mx.int32: 1e-6, mx.uint32: 1e-6},
    )


def random_inputs(token: int, rows: int, k: int, kind: Format, dtype: mx.Dtype) -> Inputs:
    return [mx.array([token], dtype=mx.uint32), *random_rows(rows, k, kind, dtype)]


def _reference(
    k: int, scale: float, token: mx.array, w: mx.array, scales: mx.array, offsets: mx.array
) -> list[mx.array]:
    packed = w.dtype == mx.uint32
    row = dense_rows(k, w[token], scales[token] if packed else scales, offsets[token] if packed else offsets)
    return [row[0] * scale]


def _launch(k: int, scale: float, target: Backend, *inputs: mx.array) -> Launch:
    w, scales, offsets = inputs[1:]
    kind = format_of(k, w, scales, offsets)
    template = (
        ("T", value_type(w, scales)),
        ("BITS", kind.bits),
        ("G", kind.group),
        ("K", k),
        ("SCALE", float_bits(scale)),
        ("THREADS", _THREADS),
    )
    # The smallest chunk is 4 numbers, so that one thread a chunk never needs more than this.
    blocks = -(-k // (4 * _THREADS))
    return Launch((blocks * _THREADS, 1, 1), (_THREADS, 1, 1), template, ((k,),), (mx.float32,))


def _sample(k: int, token: mx.array, w: mx.array, scales: mx.array, offsets: mx.array) -> Inputs:
    return random_inputs(3, 8, k, format_of(k, w, scales, offsets), value_type(w, scales))


def _examples(k: int, target: Backend) -> Iterator[Inputs]:
    for kind, dtype in example_formats():
        if not kind.balanced:
            yield random_inputs(5, 8, k, kind, dtype)
