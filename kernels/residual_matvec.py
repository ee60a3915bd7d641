"""y = r + W x for one row: the projection that ends attention or an FFN, and the residual addition, in one launch.

x     [K] float32, K a multiple of 32, starting on a 16-byte boundary
residual  [N] float32, or none
w, scales, offsets  rows [N, K] as in packed.py
bias  [N], or none
out   [N] float32

`merge_matvec` takes attention's heads in parts instead of x, as attend_decode.py leaves them: mixed [S, H, D] and
stats [S, H, 2] in float32, where D is a multiple of 32.
"""

from __future__ import annotations

from collections.abc import Iterator

import mlx.core as mx

from russet.kernels.backend import Backend
from russet.kernels.base import Inputs, Kernel, Launch
from russet.kernels.matvec_launch import SIMDGROUPS, TOLERANCE, example_formats, grid, rows_per_simdgroup, sample_rows
from russet.kernels.packed import Format, format_of, is_none, none, product, random_rows, value_type


def random_inputs(n: int, k: int, kind: Format, dtype: mx.Dtype, residual: bool = True, bias: bool = False) -> Inputs:
    """Random inputs of `residual_matvec`, the same ones each time."""
    keys = mx.random.split(mx.random.key(n), 3)
    x, rest, shift = (mx.random.normal((size,), key=key) for size, key in zip((k, n, n), keys, strict=True))
    return [
        x,
        rest if residual else none(),
        *random_rows(n, k, kind, dtype),
        shift.astype(dtype) if bias else none(dtype),
    ]


def random_parts(splits: int, heads: int, dim: int) -> tuple[mx.array, mx.array]:
    """Random mixed and stats, the same ones each time."""
    keys = mx.random.split(mx.random.key(splits * heads), 2)
    largest, total = mx.random.uniform(-2, 2, (2, splits, heads), key=keys[1])
    return mx.random.normal((splits, heads, dim), key=keys[0]), mx.stack([largest, total + 3], axis=-1)


def merge(mixed: mx.array, stats: mx.array) -> mx.array:
    """Attention's heads [H D] out of their parts: each part's softmax becomes a share of the whole."""
    largest, total = stats[..., 0], stats[..., 1]
    share = mx.exp(largest - largest.max(axis=0)) * total
    return ((share / share.sum(axis=0))[..., None] * mixed).sum(axis=0).reshape(-1)


def _reference(x: mx.array, residual: mx.array, *rest: mx.array) -> list[mx.array]:
    *rows, bias = rest
    y = product(x, *rows)
    if not is_none(bias):
        y = y + bias.astype(mx.float32)
    return [y if is_none(residual) else residual + y]


def _merged_reference(mixed: mx.array, stats: mx.array, *rest: mx.array) -> list[mx.array]:
    return _reference(merge(mixed, stats), *rest)


def _launch(target: Backend, x: mx.array, *rest: mx.array) -> Launch:
    return _launch_rows(x.shape[0], (), *rest)


def _launch_merged(target: Backend, mixed: mx.array, stats: mx.array, *rest: mx.array) -> Launch:
    splits, heads, dim = mixed.shape
    # Threadgroup memory is declared in steps, so that caches of many lengths share a variant.
    parts = next(size for size in (64, 256, 1024) if size >= splits * heads)
    return _launch_rows(heads * dim, (("PARTS", parts),), *rest)


def _launch_rows(
    k: int,
    more: tuple[tuple[str, int], ...],
    residual: mx.array,
    w: mx.array,
    scales: mx.array,
    offsets: mx.array,
    bias: mx.array,
) -> Launch:
    each = rows_per_simdgroup(w.shape[0])
    template = (
        ("T", value_type(w, scales)),
        *format_of(k, w, scales, offsets).template,
        ("OUTPUTS", each),
        ("SIMDGROUPS", SIMDGROUPS),
        ("BIAS", int(not is_none(bias))),
        ("RESIDUAL", int(not is_none(residual))),
        *more,
    )
    return Launch(*grid(w.shape[0], each), template, ((w.shape[0],),), (mx.float32,))


def _sample(x: mx.array, residual: mx.array, *rows: mx.array) -> Inputs:
    return _sample_rows(x.shape[0], 256, residual, *rows)


def _sample_merged(mixed: mx.array, stats: mx.array, *rest: mx.array) -> Inputs:
    splits, heads, dim = mixed.shape
    parts = next(size for size in (64, 256, 1024) if size >= splits * heads)
    few = random_parts(parts // 4, 4, 64)
    return [*few, *_sample_rows(heads * dim, 256, *rest)[1:]]


def _sample_rows(
    k: int, small: int, residual: mx.array, w: mx.array, scales: mx.array, offsets: mx.array, bias: mx.array
) -> Inputs:
    kind, n = format_of(k, w, scales, offsets), sample_rows(w.shape[0])
    return random_inputs(n, small, kind, value_type(w, scales), not is_none(residual), not is_none(bias))


def _examples(target: Backend) -> Iterator[Inputs]:
    for kind, dtype in example_formats():
        yield random_inputs(40, 384, kind, dtype)
    yield random_inputs(4104, 64, Format(4, 64, False), mx.float16, residual=False, bias=True)


def _merged_examples(target: Backend) -> Iterator[Inputs]:
    for kind, dtype in example_formats():
        yield [*random_parts(4, 6, 64), *random_inputs(40, 384, kind, dtype)[1:]]
    yield [*random_parts(16, 32, 64), *random_inputs(1032, 2048, Format(4, 64, False), mx.float16, bias=True)[1:]]


RESIDUAL = Kernel(
    name="residual_matvec",
    body="residual_matvec.metal",
    headers=("matvec.h",),
    inputs=("x", "residual", "w", "scales", "offsets", "bias"),
    outputs=("out",),
    reference=_reference,
    launch=_launch,
    sample=_sample,
    examples=_examples,
    tolerance=TOLERANCE,
)
MERGE = Kernel(
    name="merge_matvec",
    body="merge_matvec.metal",
    headers=("matvec.h",),
    inputs=("mixed", "stats", "residual", "w", "scales", "offsets", "bias"),
    outputs=("out",),
    reference=_merged_reference,
    launch=_launch_merged,
    sample=_sample_merged,
    examples=_merged_examples,
    tolerance=TOLERANCE,
)
