"""y = W norm(h) for one row: an RMS norm, a projection, and for an FFN its gate, in one launch.

h      [K] float32, K a multiple of 32, starting on a 16-byte boundary
sheet  [N, R], rows of K weights and the norm's gain (sheet.py), with or without a bias
out    [N] float32; where an activation makes the first half of the rows gates of the second, [N / 2]

With `post`, y [K] float32 comes after h, and the sheet has two gains: h becomes h + norm(y) times the first, which is a
second result. Norm and product are float32 throughout.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial

import mlx.core as mx

from russet.kernels.backend import Backend
from russet.kernels.base import Inputs, Kernel, Launch
from russet.kernels.matvec_launch import TOLERANCE, float_bits, sample_rows, shares
from russet.kernels.packed import Format, product
from russet.kernels.sheet import Form, parts_of, random_sheet
from russet.models.activations import gated
from russet.models.config import Activation

_ACT: dict[Activation | None, int] = {None: 0, "silu": 1, "gelu_tanh": 2, "relu": 3, "gelu": 4}


@cache
def norm_matvec(form: Form, eps: float, activation: Activation | None = None) -> Kernel:
    """The kernel for sheets of one form, with two gains for `post`; None is a plain projection, `eps` the norm's."""
    post = form.gains == 2
    return Kernel(
        name="_".join(filter(None, ("post" * post, "norm_matvec", activation))),
        body="norm_matvec.metal",
        headers=(*(("post_norm.h",) if post else ()), "matvec.h", "stage.h", "activations.h"),
        inputs=("h", "y", "sheet") if post else ("h", "sheet"),
        outputs=("out", "h_out") if post else ("out",),
        reference=partial(_reference, form, eps, activation),
        launch=partial(_launch, form, eps, activation),
        sample=lambda *inputs: random_inputs(form, sample_rows(inputs[-1].shape[0])),
        examples=lambda target: _examples(form),
        tolerance=TOLERANCE,
    )


def random_inputs(form: Form, rows: int) -> Inputs:
    """Random inputs, the same ones each time."""
    h, y = mx.random.normal((2, form.k), key=mx.random.key(rows))
    return [h, *([y] if form.gains == 2 else []), random_sheet(form, rows)]


def _reference(form: Form, eps: float, activation: Activation | None, *inputs: mx.array) -> list[mx.array]:
    h, *y, sheet = inputs
    parts = parts_of(form, sheet)
    gains = [gain.astype(mx.float32) for gain in parts.gains]
    if y:
        h = h + mx.fast.rms_norm(y[0], gains[0], eps)
    out = product(mx.fast.rms_norm(h, gains[-1], eps), *parts.rows)
    if form.bias:
        out = out + parts.bias.astype(mx.float32)
    if activation:
        out = gated(activation, compiled=False)(*mx.split(out, 2))
    return [out, h] if y else [out]


def _launch(form: Form, eps: float, activation: Activation | None, target: Backend, *inputs: mx.array) -> Launch:
    rows, parts = inputs[-1].shape[0], 2 if activation else 1
    share = shares(target, rows, form.kind.bits)
    results, each = rows // parts, max(1, share.rows // parts)
    template = (
        *form.template,
        ("OUTPUTS", each),
        ("SIMDGROUPS", share.simdgroups),
        ("STAGES", share.stages),
        ("ACT", _ACT[activation]),
        ("EPS", float_bits(eps)),
    )
    shapes = ((results,), (form.k,))[: form.gains]
    return Launch(*share.grid(results, each), template, shapes, (mx.float32,) * len(shapes))


def _examples(form: Form) -> Iterator[Inputs]:
    yield random_inputs(form, 40)
    if form.kind == Format(4, 64, False):
        yield random_inputs(form, 8192)
