"""y = W norm(h) for one row: an RMS norm, a projection, and for an FFN its gate, in one launch.

h     [K] float32, K a multiple of 32, starting on a 16-byte boundary
gain  [K] the norm's weight, in the type of the weights or of their scales
w, scales, offsets  rows [N, K] as in packed.py
bias  [N], or none
out   [N] float32; where an activation makes the first half of the rows gates of the second, [N / 2]

With `post`, y [K] float32 and post [K] come after h, which becomes h + norm(y) post and is a second result.
Norm and product are float32 throughout.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial

import mlx.core as mx

from russet.kernels.backend import Backend
from russet.kernels.base import Inputs, Kernel, Launch
from russet.kernels.matvec_launch import (
    SIMDGROUPS,
    TOLERANCE,
    example_formats,
    float_bits,
    grid,
    rows_per_simdgroup,
    sample_rows,
)
from russet.kernels.packed import Format, format_of, is_none, none, product, random_rows, value_type
from russet.models.activations import gated
from russet.models.config import Activation

_ACT: dict[Activation | None, int] = {None: 0, "silu": 1, "gelu_tanh": 2, "relu": 3, "gelu": 4}
_FIRST = {False: ("h", "gain"), True: ("h", "y", "post", "gain")}


@cache
def norm_matvec(eps: float, activation: Activation | None = None, post: bool = False) -> Kernel:
    """The kernel for one activation, None for a plain projection; `eps` is the norm's."""
    name = "_".join(filter(None, ("post" * post, "norm_matvec", activation)))
    return Kernel(
        name=name,
        body="norm_matvec.metal",
        headers=("post_norm.h", "matvec.h") if post else ("matvec.h",),
        inputs=(*_FIRST[post], "w", "scales", "offsets", "bias"),
        outputs=("out", "h_out") if post else ("out",),
        reference=partial(_reference, eps, activation, post),
        launch=partial(_launch, eps, activation, post),
        sample=partial(_sample, post),
        examples=partial(_examples, post),
        tolerance=TOLERANCE,
    )


def random_inputs(post: bool, n: int, k: int, kind: Format, dtype: mx.Dtype, bias: bool = False) -> Inputs:
    """Random inputs, the same ones each time."""
    keys = mx.random.split(mx.random.key(n), 5)
    h, y = (mx.random.normal((k,), key=key) for key in keys[:2])
    gain, after = (mx.random.uniform(0.5, 1.5, (k,), key=key).astype(dtype) for key in keys[2:4])
    shift = mx.random.normal((n,), key=keys[4]).astype(dtype) if bias else none(dtype)
    return [*((h, y, after) if post else (h,)), gain, *random_rows(n, k, kind, dtype), shift]


def _reference(eps: float, activation: Activation | None, post: bool, *inputs: mx.array) -> list[mx.array]:
    h, *between, gain, w, scales, offsets, bias = inputs
    if post:
        h = h + mx.fast.rms_norm(between[0], between[1].astype(mx.float32), eps)
    y = product(mx.fast.rms_norm(h, gain.astype(mx.float32), eps), w, scales, offsets)
    if not is_none(bias):
        y = y + bias.astype(mx.float32)
    if activation:
        y = gated(activation, compiled=False)(*mx.split(y, 2))
    return [y, h] if post else [y]


def _launch(eps: float, activation: Activation | None, post: bool, target: Backend, *inputs: mx.array) -> Launch:
    h, gain, (w, scales, offsets, bias) = inputs[0], inputs[-5], inputs[-4:]
    parts, kind = 2 if activation else 1, format_of(h.shape[0], w, scales, offsets)
    results, each = w.shape[0] // parts, max(1, rows_per_simdgroup(w.shape[0]) // parts)
    template = (
        ("T", gain.dtype),
        *kind.template,
        ("OUTPUTS", each),
        ("SIMDGROUPS", SIMDGROUPS),
        ("ACT", _ACT[activation]),
        ("BIAS", int(not is_none(bias))),
        ("EPS", float_bits(eps)),
    )
    shapes = ((results,), h.shape) if post else ((results,),)
    return Launch(*grid(results, each), template, shapes, (mx.float32,) * len(shapes))


def _sample(post: bool, *inputs: mx.array) -> Inputs:
    h, (w, scales, offsets, bias) = inputs[0], inputs[-4:]
    kind = format_of(h.shape[0], w, scales, offsets)
    return random_inputs(post, sample_rows(w.shape[0]), 256, kind, value_type(w, scales), not is_none(bias))


def _examples(post: bool, target: Backend) -> Iterator[Inputs]:
    for kind, dtype in example_formats():
        yield random_inputs(post, 40, 384, kind, dtype)
    yield random_inputs(post, 8192, 64, Format(4, 64, False), mx.float16, bias=True)
