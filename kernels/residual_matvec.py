"""y = r + W x for one row: the projection that ends attention or an FFN, and the residual addition, in one launch.

x         [K] float32, K a multiple of 32, starting on a 16-byte boundary
residual  [N] float32; kernels made without it return W x
sheet     [N, R], rows of K weights (sheet.py), with or without a bias
out       [N] float32

`merge_matvec` takes attention's heads in parts instead of x, as attend_decode.py leaves them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial

import mlx.core as mx

from russet.kernels.attend_reference import merge, random_parts, splits_of
from russet.kernels.backend import Backend
from russet.kernels.base import Inputs, Kernel, Launch
from russet.kernels.matvec_launch import TOLERANCE, sample_rows, shares
from russet.kernels.packed import product
from russet.kernels.sheet import Form, parts_of, random_sheet

MAX_MERGED = 5120
"""Features of all heads together: merged, they lie in threadgroup memory."""


@cache
def residual_matvec(form: Form, residual: bool) -> Kernel:
    """The kernel for sheets of one form."""
    return Kernel(
        name="residual_matvec",
        body="residual_matvec.metal",
        headers=(*_headers(residual), "stage.h"),
        inputs=("x", *_residual(residual), "sheet"),
        outputs=("out",),
        reference=lambda x, *rest: _reference(form, x, *rest),
        launch=partial(_launch, form, ()),
        sample=lambda *inputs: _sample(form, residual, inputs, _random_x),
        examples=lambda target: _examples(form, residual, _random_x),
        tolerance=TOLERANCE,
    )


@cache
def merge_matvec(form: Form, residual: bool, heads: int) -> Kernel:
    """The kernel for sheets of one form, whose K are the features of `heads` heads."""
    dim = form.k // heads

    def launch(target: Backend, parts: mx.array, *rest: mx.array) -> Launch:
        sizes = (("K", form.k), ("D", dim), ("SPLITS", splits_of(parts, heads, dim)))
        return _launch(form, sizes, target, parts, *rest)

    def x_like(parts: mx.array | None) -> mx.array:
        return random_parts(splits_of(parts, heads, dim) if parts is not None else 4, heads, dim)

    return Kernel(
        name="merge_matvec",
        body="merge_matvec.metal",
        headers=_headers(residual),
        inputs=("parts", *_residual(residual), "sheet"),
        outputs=("out",),
        reference=lambda parts, *rest: _reference(form, merge(parts, heads, dim), *rest),
        launch=launch,
        sample=lambda *inputs: _sample(form, residual, inputs, lambda form, parts: x_like(parts)),
        examples=lambda target: _examples(form, residual, lambda form, parts: x_like(parts)),
        tolerance=TOLERANCE,
    )


def random_inputs(form: Form, rows: int, residual: bool = True) -> Inputs:
    """Random inputs of `residual_matvec`, the same ones each time."""
    rest = [mx.random.normal((rows,), key=mx.random.key(rows))] if residual else []
    return [_random_x(form, None), *rest, random_sheet(form, rows)]


def _random_x(form: Form, x: mx.array | None) -> mx.array:
    return mx.random.normal((form.k,), key=mx.random.key(form.k))


def _headers(residual: bool) -> tuple[str, ...]:
    return ("with_residual.h", "matvec.h") if residual else ("matvec.h",)


def _residual(residual: bool) -> tuple[str, ...]:
    return ("residual",) if residual else ()


def _reference(form: Form, x: mx.array, *rest: mx.array) -> list[mx.array]:
    *residual, sheet = rest
    parts = parts_of(form, sheet)
    y = product(x, *parts.rows)
    if form.bias:
        y = y + parts.bias.astype(mx.float32)
    return [residual[0] + y if residual else y]


def _launch(form: Form, merged: tuple[tuple[str, int], ...], target: Backend, *inputs: mx.array) -> Launch:
    """Merged heads wait in threadgroup memory whole, anything else in stages."""
    rows = inputs[-1].shape[0]
    share = shares(target, rows, form.kind.bits)
    sizes = merged or (("STAGES", share.stages),)
    template = (*form.template, ("OUTPUTS", share.rows), ("SIMDGROUPS", share.simdgroups), *sizes)
    return Launch(*share.grid(rows, share.rows), template, ((rows,),), (mx.float32,))


def _sample(form: Form, residual: bool, inputs: Inputs, x_like: Callable[[Form, mx.array | None], mx.array]) -> Inputs:
    return [x_like(form, inputs[0]), *random_inputs(form, sample_rows(inputs[-1].shape[0]), residual)[1:]]


def _examples(form: Form, residual: bool, x_like: Callable[[Form, mx.array | None], mx.array]) -> Iterator[Inputs]:
    yield [x_like(form, None), *random_inputs(form, 40, residual)[1:]]
