from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from kernel_runs import simulate, simulate_all_orders
from metalsim import COMPILER

from russet.kernels import norm_matvec as norm_module
from russet.kernels import residual_matvec as residual_module
from russet.kernels.base import relative_error, variant_name
from russet.kernels.embed_row import embed_row
from russet.kernels.embed_row import random_inputs as embedding_inputs
from russet.kernels.matvec_launch import rows_per_simdgroup, sample_rows
from russet.kernels.norm_matvec import norm_matvec
from russet.kernels.packed import Format, dense_rows, none
from russet.kernels.residual_matvec import MERGE, RESIDUAL, merge, random_parts

F16, BF16, F32 = mx.float16, mx.bfloat16, mx.float32
FORMATS = [
    (Format(16, 0, False), F16),
    (Format(16, 0, False), BF16),
    (Format(32, 0, False), F32),
    (Format(8, 32, False), F32),
    (Format(8, 64, False), BF16),
    (Format(4, 32, False), F16),
    (Format(4, 128, False), BF16),
    (Format(2, 64, False), F16),
    (Format(2, 0, True), BF16),
    (Format(2, 64, True), F16),
]
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler: install g++ or clang++")
each_format = pytest.mark.parametrize(
    ("kind", "dtype"), FORMATS, ids=[f"{k.bits}-{k.group}-{'balanced' * k.balanced}-{d}" for k, d in FORMATS]
)


def wide(array: mx.array) -> np.ndarray:
    return np.array(array.astype(F32)).astype(np.float64)


def rows(k: int, *packed: mx.array) -> np.ndarray:
    """Weights in float64, from the definition of the packing."""
    w, scales, offsets = packed
    if w.dtype != mx.uint32:
        return wide(w)
    bits = w.shape[1] * 32 // k
    q = np.array(w)[:, :, None] >> (bits * np.arange(32 // bits, dtype=np.uint32)) & ((1 << bits) - 1)
    q = q.reshape(w.shape[0], k).astype(np.float64)
    spread = [np.repeat(wide(a).reshape(w.shape[0], -1), k // (a.size // w.shape[0]), 1) for a in (scales,)]
    low = -1.5 * spread[0] if offsets.shape == (1, 8) else np.repeat(wide(offsets), k // offsets.shape[1], 1)
    return spread[0] * q + low


def norm(x: np.ndarray, gain: np.ndarray, eps: float) -> np.ndarray:
    return x / np.sqrt((x * x).mean() + eps) * gain


def error(found: mx.array, expected: np.ndarray) -> float:
    return float(np.linalg.norm(wide(found) - expected) / np.linalg.norm(expected))


@needs_compiler
@each_format
def test_norm_and_projection(kind, dtype):
    inputs = norm_module.random_inputs(False, 42, 384, kind, dtype, bias=True)
    h, gain, *packed, bias = inputs
    (y,) = simulate_all_orders(norm_matvec(1e-2), inputs)
    expected = rows(384, *packed) @ norm(wide(h), wide(gain), 1e-2) + wide(bias)
    assert error(y, expected) < 2e-6
    assert relative_error(norm_matvec(1e-2)(*inputs)[0], mx.array(expected.astype(np.float32))) < 2e-6


ACTIVATIONS = {
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "relu": lambda x: np.maximum(x, 0),
}


@needs_compiler
@pytest.mark.parametrize("activation", [*ACTIVATIONS, "gelu"])
def test_gates(activation):
    kernel = norm_matvec(1e-5, activation)
    inputs = norm_module.random_inputs(False, 2 * 21, 192, Format(4, 64, False), F16)
    h, gain, *packed, _ = inputs
    gate, up = np.split(rows(192, *packed) @ norm(wide(h), wide(gain), 1e-5), 2)
    act = ACTIVATIONS.get(activation) or np.vectorize(lambda x: 0.5 * x * (1 + __import__("math").erf(x / 2**0.5)))
    for (y,) in (simulate_all_orders(kernel, inputs), kernel(*inputs)):
        assert y.shape == (21,)
        assert error(y, act(gate) * up) < 3e-6


@needs_compiler
@pytest.mark.parametrize(("kind", "dtype"), [FORMATS[0], FORMATS[5]])
@pytest.mark.parametrize("activation", [None, "gelu_tanh"])
def test_a_norm_and_an_addition_in_front(kind, dtype, activation):
    kernel = norm_matvec(1e-6, activation, post=True)
    inputs = norm_module.random_inputs(True, 44, 320, kind, dtype)
    h, y, post, gain, *packed, _ = inputs
    added = wide(h) + norm(wide(y), wide(post), 1e-6)
    expected = rows(320, *packed) @ norm(added, wide(gain), 1e-6)
    if activation:
        gate, up = np.split(expected, 2)
        expected = ACTIVATIONS[activation](gate) * up
    for out, h_out in (simulate_all_orders(kernel, inputs), kernel(*inputs)):
        assert error(out, expected) < 3e-6
        assert error(h_out, added) < 1e-6


@needs_compiler
@each_format
def test_projection_and_residual(kind, dtype):
    inputs = residual_module.random_inputs(23, 640, kind, dtype, bias=True)
    x, residual, *packed, bias = inputs
    expected = wide(residual) + rows(640, *packed) @ wide(x) + wide(bias)
    for (y,) in (simulate_all_orders(RESIDUAL, inputs), RESIDUAL(*inputs)):
        assert error(y, expected) < 2e-6


@needs_compiler
def test_a_projection_alone():
    x, _, *packed, _ = residual_module.random_inputs(9, 96, *FORMATS[5])
    (y,) = simulate_all_orders(RESIDUAL, [x, none(), *packed, none(F16)])
    assert error(y, rows(96, *packed) @ wide(x)) < 2e-6


@needs_compiler
@pytest.mark.parametrize(("splits", "heads", "dim"), [(1, 3, 64), (5, 9, 64), (3, 2, 128), (12, 8, 32)])
def test_attention_merges_from_its_parts(splits, heads, dim):
    mixed, stats = random_parts(splits, heads, dim)
    # A part that saw no row.
    stats[splits // 2, 0] = mx.array([-1e30, 0.0]) if splits > 1 else stats[splits // 2, 0]
    _, residual, *packed, bias = residual_module.random_inputs(17, heads * dim, *FORMATS[0])
    share = np.exp(wide(stats)[..., 0] - wide(stats)[..., 0].max(0)) * wide(stats)[..., 1]
    x = ((share / share.sum(0))[..., None] * wide(mixed)).sum(0).reshape(-1)
    inputs = [mixed, stats, residual, *packed, bias]
    for (y,) in (simulate_all_orders(MERGE, inputs), MERGE(*inputs)):
        assert error(y, wide(residual) + rows(heads * dim, *packed) @ x) < 2e-6
    assert error(merge(mixed, stats), x) < 1e-6


@needs_compiler
@pytest.mark.parametrize(("kind", "dtype"), [pair for pair in FORMATS if not pair[0].balanced])
def test_an_embedding_row(kind, dtype):
    inputs = embedding_inputs(6, 11, 640, kind, dtype)
    expected = rows(640, *inputs[1:])[6] * 1.5
    for (row,) in (simulate_all_orders(embed_row(640, 1.5), inputs), embed_row(640, 1.5)(*inputs)):
        assert error(row, expected) < 1e-6


@needs_compiler
def test_a_large_mean_does_not_cancel():
    x, residual, *packed, bias = residual_module.random_inputs(16, 512, *FORMATS[7])
    (y,) = simulate(RESIDUAL, [x + 30, residual, *packed, bias])
    assert error(y, wide(residual) + rows(512, *packed) @ wide(x + 30)) < 2e-6


@each_format
def test_dense_rows_are_those_of_the_packing(kind, dtype):
    packed = residual_module.random_inputs(12, 256, kind, dtype)[2:5]
    assert error(dense_rows(256, *packed), rows(256, *packed)) < 1e-6


@pytest.mark.parametrize("n", [24, 1024, 5000, 49152])
def test_a_sample_launches_the_variant_it_stands_for(n):
    kernels = [
        (norm_matvec(1e-5), norm_module.random_inputs(False, n, 64, *FORMATS[5], bias=True)),
        (norm_matvec(1e-5, "silu"), norm_module.random_inputs(False, n, 64, *FORMATS[8])),
        (norm_matvec(1e-5, "silu", post=True), norm_module.random_inputs(True, n, 64, *FORMATS[0])),
        (RESIDUAL, residual_module.random_inputs(n, 64, *FORMATS[3], residual=False)),
        (MERGE, [*random_parts(9, 8, 64), *residual_module.random_inputs(n, 512, *FORMATS[6])[1:]]),
    ]
    for kernel, inputs in kernels:
        sample = kernel.sample(*inputs)
        wanted, launched = (variant_name(kernel.launch("cuda", *given), given) for given in (inputs, sample))
        assert launched == wanted
        assert rows_per_simdgroup(sample_rows(n)) == rows_per_simdgroup(n)
