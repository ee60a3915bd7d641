"""One call of each kernel at a well-known size, and MLX's operations for the same work: what `russet doctor` times.

Sizes are Llama-2-7B's at 4 bits, with 8 KV heads. The calls of a trial share their weights, which caches may hold:
`russet bench kernels` measures with fresh ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx

from russet.kernels.attend_decode import ATTEND_DECODE, ATTEND_SHARED, Shape
from russet.kernels.attend_decode import random_inputs as random_attend
from russet.kernels.attend_reference import merge, random_parts
from russet.kernels.backend import backend
from russet.kernels.base import Inputs, Kernel
from russet.kernels.embed_row import embed_row
from russet.kernels.embed_row import random_inputs as random_embed
from russet.kernels.norm_matvec import norm_matvec
from russet.kernels.norm_matvec import random_inputs as random_norm
from russet.kernels.packed import Format, dense_rows
from russet.kernels.q2_matvec import LANES, TILES, affine
from russet.kernels.q2_matvec import random_inputs as random_q2
from russet.kernels.residual_matvec import merge_matvec, residual_matvec
from russet.kernels.residual_matvec import random_inputs as random_residual
from russet.kernels.row_importance import ROWS, STATS
from russet.kernels.row_importance import random_inputs as random_importance
from russet.kernels.sheet import Form, parts_of
from russet.kernels.sigmoid_attention import DECODE, PREFILL
from russet.kernels.sigmoid_attention import random_inputs as random_sigmoid
from russet.kernels.sparse_ffn import DOWN, gate_up, gate_up_vector, random_down, random_gate_up
from russet.models.activations import gated
from russet.models.config import Activation

_EPS = 1e-5
_KIND = Format(4, 64, False)
_F16 = mx.float16


@dataclass(frozen=True, slots=True)
class Size:
    """A decoder's sizes, and the rows that attention sees."""

    hidden: int = 4096
    neurons: int = 11008
    heads: int = 32
    kv_heads: int = 8
    rows: int = 1024

    @property
    def dim(self) -> int:
        return self.hidden // self.heads


@dataclass(frozen=True, slots=True)
class Trial:
    """A kernel with inputs, and a call of MLX's operations that does the same work in float16."""

    kernel: Kernel
    inputs: Inputs
    stock: Callable[[], mx.array]


def trials(size: Size) -> dict[str, Callable[[], Trial]]:
    """What makes the trial of each kernel, by the kernel's name."""
    return {
        "embed_row": lambda: _embed(size),
        "norm_matvec": lambda: _normed(size),
        "norm_matvec_silu": lambda: _normed(size, "silu"),
        "post_norm_matvec": lambda: _post_normed(size),
        "post_norm_matvec_gelu_tanh": lambda: _post_normed(size, "gelu_tanh"),
        "merge_matvec": lambda: _merged(size),
        "residual_matvec": lambda: _added(size),
        "q2_lanes": lambda: _q2(size, LANES, 1),
        "q2_tiles": lambda: _q2(size, TILES, 8),
        "sigmoid_prefill": lambda: _sigmoid(size, PREFILL, size.rows),
        "sigmoid_decode": lambda: _sigmoid(size, DECODE, 1),
        "attend_decode": lambda: _attend(size, ATTEND_DECODE, True),
        "attend_shared": lambda: _attend(size, ATTEND_SHARED, False),
        "importance_stats": lambda: _importance(size, STATS),
        "importance_rows": lambda: _importance(size, ROWS),
        "sparse_gate_up_relu": lambda: _sparse_gate_up(size, gate_up("relu"), "relu", 4),
        "sparse_gate_up_silu": lambda: _sparse_gate_up(size, gate_up("silu"), "silu", 4),
        "sparse_gate_vector_relu": lambda: _sparse_gate_up(size, gate_up_vector("relu"), "relu", 0),
        "sparse_gate_vector_silu": lambda: _sparse_gate_up(size, gate_up_vector("silu"), "silu", 0),
        "sparse_down": lambda: _sparse_down(size),
    }


def _times(x: mx.array, w: mx.array, scales: mx.array, offsets: mx.array) -> mx.array:
    return mx.quantized_matmul(x, w, scales, offsets, True, _KIND.group, _KIND.bits)


def _gate(activation: Activation | None, y: mx.array) -> mx.array:
    if activation is None:
        return y
    return gated(activation, compiled=backend() is not None)(*mx.split(y, 2, axis=-1))


def _row(array: mx.array) -> mx.array:
    """One row in float16, as a model's step has it."""
    row = array[None].astype(_F16)
    mx.eval(row)
    return row


def _embed(size: Size) -> Trial:
    form = Form(size.hidden, _KIND, _F16)
    token, sheet = random_embed(form, 5, 1024)
    w, scales, offsets = _kept(*parts_of(form, sheet).rows)
    return Trial(
        embed_row(form, 1.0),
        [token, sheet],
        lambda: mx.dequantize(w[token], scales[token], offsets[token], _KIND.group, _KIND.bits)[0],
    )


def _normed(size: Size, activation: Activation | None = None) -> Trial:
    form = Form(size.hidden, _KIND, _F16, gains=1)
    inputs = random_norm(form, 2 * size.neurons if activation else size.hidden)
    parts, x = parts_of(form, inputs[1]), _row(inputs[0])
    rows, (gain,) = _kept(*parts.rows), _kept(*parts.gains)
    return Trial(
        norm_matvec(form, _EPS, activation),
        inputs,
        lambda: _gate(activation, _times(mx.fast.rms_norm(x, gain, _EPS), *rows))[0],
    )


def _post_normed(size: Size, activation: Activation | None = None) -> Trial:
    form = Form(size.hidden, _KIND, _F16, gains=2)
    inputs = random_norm(form, 2 * size.neurons if activation else size.hidden)
    parts, x, y = parts_of(form, inputs[2]), _row(inputs[0]), _row(inputs[1])
    rows, (post, gain) = _kept(*parts.rows), _kept(*parts.gains)

    def stock() -> mx.array:
        h = x + mx.fast.rms_norm(y, post, _EPS)
        return _gate(activation, _times(mx.fast.rms_norm(h, gain, _EPS), *rows))[0]

    return Trial(norm_matvec(form, _EPS, activation), inputs, stock)


def _merged(size: Size) -> Trial:
    """MLX's side starts from the heads, since its attention puts them together."""
    form = Form(size.hidden, _KIND, _F16)
    _, residual, sheet = random_residual(form, size.hidden)
    parts = random_parts(4, size.heads, size.dim)
    x, r, rows = _row(merge(parts, size.heads, size.dim)), _row(residual), _kept(*parts_of(form, sheet).rows)
    return Trial(merge_matvec(form, True, size.heads), [parts, residual, sheet], lambda: (r + _times(x, *rows))[0])


def _added(size: Size) -> Trial:
    form = Form(size.neurons, _KIND, _F16)
    inputs = random_residual(form, size.hidden)
    x, r, rows = _row(inputs[0]), _row(inputs[1]), _kept(*parts_of(form, inputs[2]).rows)
    return Trial(residual_matvec(form, True), inputs, lambda: (r + _times(x, *rows))[0])


def _q2(size: Size, kernel: Kernel, rows: int) -> Trial:
    x, w, scales = random_q2(rows, size.neurons, size.hidden, 64, _F16, _F16)
    offsets = affine(w, scales)[1].astype(_F16)
    mx.eval(offsets)
    return Trial(kernel, [x, w, scales], lambda: mx.quantized_matmul(x, w, scales, offsets, True, 64, 2))


def _sigmoid(size: Size, kernel: Kernel, rows: int) -> Trial:
    """Beside MLX's softmax attention."""
    inputs = random_sigmoid(size.heads, size.kv_heads, rows, size.rows, size.dim, _F16)
    queries, keys, values, _ = _kept(*inputs)
    return Trial(kernel, inputs, lambda: _softmax_attention(queries, keys, values, "causal" if rows > 1 else None))


def _attend(size: Size, kernel: Kernel, owns: bool) -> Trial:
    """MLX's side is attention alone, without rotation, norms and the new row."""
    shape = Shape(size.heads, size.kv_heads, size.dim, size.rows, size.rows, 5)
    inputs = random_attend(shape, _F16, owns)
    queries = mx.random.normal((1, size.heads, 1, size.dim), key=mx.random.key(1)).astype(_F16)
    queries, keys, values = _kept(queries, inputs[1], inputs[2])
    return Trial(kernel, inputs, lambda: _softmax_attention(queries, keys, values))


def _softmax_attention(queries: mx.array, keys: mx.array, values: mx.array, mask: str | None = None) -> mx.array:
    scale = queries.shape[-1] ** -0.5
    return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale, mask=mask)


def _importance(size: Size, kernel: Kernel) -> Trial:
    queries, keys, constants = random_importance(size.heads, size.kv_heads, size.rows, size.dim, _F16, _F16)
    stats = _kept(*STATS.reference(queries, keys, constants))
    grouped = (queries * size.dim**-0.5).reshape(1, size.kv_heads, -1, size.dim)
    grouped, rows = _kept(grouped, keys)

    def stock() -> mx.array:
        scores = (grouped @ rows.swapaxes(-1, -2)).reshape(size.heads, -1)
        return mx.logsumexp(scores, axis=-1) if kernel is STATS else mx.softmax(scores, axis=-1).mean(axis=0)

    return Trial(kernel, [queries, keys, *(() if kernel is STATS else stats), constants], stock)


def _sparse_gate_up(size: Size, kernel: Kernel, activation: Activation, rows: int) -> Trial:
    """A vector in float32 for 0 rows."""
    inputs = random_gate_up(rows, size.hidden, size.neurons, _KIND, _F16 if rows else mx.float32, _F16)
    x, (gain, *weights) = (inputs[0] if rows else _row(inputs[0])), _kept(*inputs[1:5])
    return Trial(
        kernel,
        inputs,
        lambda: _gate(activation, _times(mx.fast.rms_norm(x, gain, _EPS), *weights)),
    )


def _sparse_down(size: Size) -> Trial:
    """Three neurons of four are inactive; MLX multiplies them all, with weights by output."""
    inputs = random_down(0, size.neurons, size.hidden, _KIND, mx.float32, _F16)
    x, r = _row(inputs[0]), _row(inputs[1])
    by_output = dense_rows(size.hidden, *inputs[2:]).T.astype(_F16)
    rows = _kept(*mx.quantize(by_output, _KIND.group, _KIND.bits))
    return Trial(DOWN, inputs, lambda: (r + _times(x, *rows))[0])


def _kept(*arrays: mx.array) -> tuple[mx.array, ...]:
    """The arrays computed, so that their making is not timed."""
    made = tuple(mx.contiguous(array) for array in arrays)
    mx.eval(made)
    return made
