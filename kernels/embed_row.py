"""One row of an embedding table, widened and scaled, in one launch.

token  one integer, of any shape
sheet  [V, R], rows of K weights (sheet.py), K a multiple of 32
out    [K] float32
"""

from __future__ import annotations

from functools import cache, partial

import mlx.core as mx

from russet.kernels.backend import Backend
from russet.kernels.base import Inputs, Kernel, Launch
from russet.kernels.matvec_launch import float_bits
from russet.kernels.packed import dense_rows
from russet.kernels.sheet import Form, parts_of, random_sheet

_THREADS = 128


@cache
def embed_row(form: Form, scale: float) -> Kernel:
    """The kernel for tables of one form, whose rows are multiplied by `scale`."""
    return Kernel(
        name="embed_row",
        body="embed_row.metal",
        headers=("matvec.h", "unpack.h"),
        inputs=("token", "sheet"),
        outputs=("out",),
        reference=partial(_reference, form, scale),
        launch=partial(_launch, form, scale),
        sample=lambda *inputs: random_inputs(form, 3, 8),
        examples=lambda target: iter([random_inputs(form, 5, 8)]),
        tolerance={mx.int32: 1e-6, mx.uint32: 1e-6},
    )


def random_inputs(form: Form, token: int, rows: int) -> Inputs:
    return [mx.array([token], dtype=mx.uint32), random_sheet(form, rows)]


def _reference(form: Form, scale: float, token: mx.array, sheet: mx.array) -> list[mx.array]:
    parts, token = parts_of(form, sheet), token.reshape(-1)
    packed = form.kind.bits < 16
    others = [array[token] if packed and array.shape != (1, 8) else array for array in (parts.scales, parts.offsets)]
    return [dense_rows(form.k, parts.w[token], *others)[0] * scale]


def _launch(form: Form, scale: float, target: Backend, token: mx.array, sheet: mx.array) -> Launch:
    template = (*form.template, ("K", form.k), ("SCALE", float_bits(scale)), ("THREADS", _THREADS))
    # The smallest chunk is 8 numbers, so that one thread a chunk never needs more than this.
    blocks = -(-form.k // (8 * _THREADS))
    return Launch((blocks * _THREADS, 1, 1), (_THREADS, 1, 1), template, ((form.k,),), (mx.float32,))
