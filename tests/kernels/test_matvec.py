from __future__ import annotations

import math

import mlx.core as mx
import numpy as np
import pytest
from kernel_runs import simulate, simulate_all_orders
from metalsim import COMPILER

from russet.kernels import embed_row as embed_module
from russet.kernels import norm_matvec as norm_module
from russet.kernels import residual_matvec as residual_module
from russet.kernels.attend_reference import random_parts
from russet.kernels.backend import text
from russet.kernels.base import relative_error, variant_name
from russet.kernels.embed_row import embed_row
from russet.kernels.matvec_launch import chunk, sample_rows, shares
from russet.kernels.norm_matvec import norm_matvec
from russet.kernels.packed import Format, dense_rows, none
from russet.kernels.residual_matvec import merge_matvec, residual_matvec
from russet.kernels.sheet import Form, Parts, make_sheet, parts_of, random_sheet

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


def rows(form: Form, sheet: mx.array) -> np.ndarray:
    """Weights in float64, from the definition of the packing."""
    w, scales, offsets = parts_of(form, sheet).rows
    bits, count = form.kind.bits, sheet.shape[0]
    if bits >= 16:
        return wide(w)
    q = np.array(w)[:, :, None] >> (bits * np.arange(32 // bits, dtype=np.uint32)) & ((1 << bits) - 1)
    spread, low = (np.repeat(wide(a).reshape(count, -1), form.k // (a.size // count), 1) for a in (scales, scales))
    low = -1.5 * low if form.kind.balanced else np.repeat(wide(offsets), form.k // offsets.shape[1], 1)
    return spread * q.reshape(count, form.k) + low


def norm(x: np.ndarray, gain: mx.array, eps: float) -> np.ndarray:
    return x / np.sqrt((x * x).mean() + eps) * wide(gain)


def error(found: mx.array, expected: np.ndarray) -> float:
    return float(np.linalg.norm(wide(found) - expected) / np.linalg.norm(expected))


@needs_compiler
@each_format
def test_norm_and_projection(kind, dtype):
    form = Form(384, kind, dtype, bias=True, gains=1)
    h, sheet = inputs = norm_module.random_inputs(form, 42)
    parts = parts_of(form, sheet)
    kernel = norm_matvec(form, 1e-2)
    expected = rows(form, sheet) @ norm(wide(h), parts.gains[0], 1e-2) + wide(parts.bias)
    assert error(simulate_all_orders(kernel, inputs)[0], expected) < 2e-6
    assert relative_error(kernel(*inputs)[0], mx.array(expected.astype(np.float32))) < 2e-6


ACTIVATIONS = {
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "relu": lambda x: np.maximum(x, 0),
    "gelu": np.vectorize(lambda x: 0.5 * x * (1 + math.erf(x / 2**0.5))),
}


@needs_compiler
@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_gates(activation):
    form = Form(192, *FORMATS[5], gains=1)
    kernel = norm_matvec(form, 1e-5, activation)
    h, sheet = inputs = norm_module.random_inputs(form, 2 * 21)
    gate, up = np.split(rows(form, sheet) @ norm(wide(h), parts_of(form, sheet).gains[0], 1e-5), 2)
    for (y,) in (simulate_all_orders(kernel, inputs), kernel(*inputs)):
        assert y.shape == (21,)
        assert error(y, ACTIVATIONS[activation](gate) * up) < 3e-6


@needs_compiler
@pytest.mark.parametrize(("kind", "dtype"), [FORMATS[0], FORMATS[5]])
@pytest.mark.parametrize("activation", [None, "gelu_tanh"])
def test_a_norm_and_an_addition_in_front(kind, dtype, activation):
    form = Form(320, kind, dtype, gains=2)
    kernel = norm_matvec(form, 1e-6, activation)
    h, y, sheet = inputs = norm_module.random_inputs(form, 44)
    post, gain = parts_of(form, sheet).gains
    added = wide(h) + norm(wide(y), post, 1e-6)
    expected = rows(form, sheet) @ norm(added, gain, 1e-6)
    if activation:
        gate, up = np.split(expected, 2)
        expected = ACTIVATIONS[activation](gate) * up
    for out, h_out in (simulate_all_orders(kernel, inputs), kernel(*inputs)):
        assert error(out, expected) < 3e-6
        assert error(h_out, added) < 1e-6


@needs_compiler
@each_format
def test_projection_and_residual(kind, dtype):
    form = Form(640, kind, dtype, bias=True)
    x, residual, sheet = inputs = residual_module.random_inputs(form, 23)
    expected = wide(residual) + rows(form, sheet) @ wide(x) + wide(parts_of(form, sheet).bias)
    kernel = residual_matvec(form, True)
    for (y,) in (simulate_all_orders(kernel, inputs), kernel(*inputs)):
        assert error(y, expected) < 2e-6


@needs_compiler
def test_a_projection_alone():
    form = Form(96, *FORMATS[5])
    x, sheet = inputs = residual_module.random_inputs(form, 9, residual=False)
    (y,) = simulate_all_orders(residual_matvec(form, False), inputs)
    assert error(y, rows(form, sheet) @ wide(x)) < 2e-6


@needs_compiler
@pytest.mark.parametrize(("splits", "heads", "dim"), [(1, 3, 64), (4, 9, 64), (2, 2, 128), (16, 8, 32)])
def test_attention_merges_from_its_parts(splits, heads, dim):
    form = Form(heads * dim, *FORMATS[0], bias=True)
    parts = random_parts(splits, heads, dim)
    mixed, stats = np.split(wide(parts), [splits * heads * dim])
    mixed, stats = mixed.reshape(splits, heads, dim), stats.reshape(splits, heads, 2)
    share = np.exp(stats[..., 0] - stats[..., 0].max(0)) * stats[..., 1]
    x = ((share / share.sum(0))[..., None] * mixed).sum(0).reshape(-1)
    _, residual, sheet = residual_module.random_inputs(form, 17)
    kernel = merge_matvec(form, True, heads)
    expected = wide(residual) + rows(form, sheet) @ x + wide(parts_of(form, sheet).bias)
    for (y,) in (simulate_all_orders(kernel, [parts, residual, sheet]), kernel(parts, residual, sheet)):
        assert error(y, expected) < 2e-6


@needs_compiler
@pytest.mark.parametrize(("kind", "dtype"), [FORMATS[i] for i in (0, 2, 4, 6, 9)])
@pytest.mark.parametrize("k", [896, 4096, 5248])
def test_input_in_stages_as_cuda_takes_it(kind, dtype, k):
    """Threadgroups of eight simdgroups, and more of the input at once than one block; the last stage is short."""
    form = Form(k, kind, dtype, gains=1)
    h, sheet = inputs = norm_module.random_inputs(form, 37)
    expected = rows(form, sheet) @ norm(wide(h), parts_of(form, sheet).gains[0], 1e-5)
    (y,) = simulate_all_orders(norm_matvec(form, 1e-5), inputs, "cuda")
    assert error(y, expected) < 3e-6
    form = Form(k, kind, dtype)
    x, residual, sheet = inputs = residual_module.random_inputs(form, 37)
    (y,) = simulate_all_orders(residual_matvec(form, True), inputs, "cuda")
    assert error(y, wide(residual) + rows(form, sheet) @ wide(x)) < 3e-6


def test_chunks_are_those_of_the_kernels():
    for bits in (2, 4, 8, 16, 32):
        assert f"BITS == {bits} ? {chunk(bits)}" in text("matvec.h") or chunk(bits) == 32


@needs_compiler
def test_a_part_that_saw_no_row_does_not_count():
    form = Form(64, *FORMATS[2])
    parts = np.array(random_parts(2, 1, 64))
    alone = np.concatenate([parts[:64], parts[128:130]])
    parts[64:128], parts[130:] = 0, [-1e30, 0]
    _, residual, sheet = residual_module.random_inputs(form, 17)
    kernel = merge_matvec(form, True, 1)
    (y,) = simulate(kernel, [mx.array(parts), residual, sheet])
    (other,) = simulate(kernel, [mx.array(alone), residual, sheet])
    assert error(y, wide(other)) < 1e-6


@needs_compiler
@pytest.mark.parametrize("highest", [0, 1])
def test_scores_far_apart_do_not_overflow(highest):
    form = Form(64, *FORMATS[2])
    parts = np.array(random_parts(2, 1, 64))
    parts[64:128] = parts[:64] + 1
    parts[128:] = [0, 1, 0, 1]
    parts[128 + 2 * highest] = 200
    _, residual, sheet = residual_module.random_inputs(form, 17)
    (y,) = simulate(merge_matvec(form, True, 1), [mx.array(parts), residual, sheet])
    x = parts[64 * highest : 64 * (highest + 1)]
    assert error(y, wide(residual) + rows(form, sheet) @ x) < 2e-6


@needs_compiler
@each_format
def test_an_embedding_row(kind, dtype):
    form = Form(640, kind, dtype, gains=1)
    inputs = embed_module.random_inputs(form, 6, 11)
    kernel = embed_row(form, 1.5)
    for (row,) in (simulate_all_orders(kernel, inputs), kernel(*inputs)):
        assert error(row, rows(form, inputs[1])[6] * 1.5) < 1e-6


@needs_compiler
def test_a_large_mean_does_not_cancel():
    form = Form(512, *FORMATS[7])
    x, residual, sheet = residual_module.random_inputs(form, 16)
    (y,) = simulate(residual_matvec(form, True), [x + 30, residual, sheet])
    assert error(y, wide(residual) + rows(form, sheet) @ wide(x + 30)) < 2e-6


@each_format
def test_a_sheet_holds_its_parts(kind, dtype):
    form = Form(192, kind, dtype, bias=True, gains=2)
    sheet = random_sheet(form, 13)
    parts = parts_of(form, sheet)
    assert mx.array_equal(make_sheet(form, parts), sheet)
    assert [gain.shape for gain in parts.gains] == [(192,), (192,)]
    assert parts.bias.shape == (13,)
    assert error(dense_rows(192, *parts.rows), rows(form, sheet)) < 1e-6


def test_parts_of_odd_lengths_start_on_boundaries():
    form = Form(96, Format(4, 32, False), F16, bias=True, gains=1)
    w, scales, offsets, bias, gain = mx.full((5, 12), 7, mx.uint32), *(mx.full((5, 3), x, F16) for x in (2, 3)), 4, 5
    bias, gain = mx.full((5,), bias, F16), mx.full((96,), gain, F16)
    flat = np.array(make_sheet(form, Parts(w, scales, offsets, bias, (gain,)))).reshape(-1)
    halves = flat.view(np.float16)
    assert (flat[:60] == 7).all()
    for at, count, value in ((60, 15, 2), (68, 15, 3), (76, 5, 4), (80, 96, 5)):
        assert (halves[2 * at : 2 * at + count] == value).all()


@pytest.mark.parametrize("n", [24, 1024, 5000, 49152])
def test_a_sample_launches_the_variant_it_stands_for(n):
    cases = [
        (norm_matvec(form := Form(64, *FORMATS[5], bias=True, gains=1), 1e-5), norm_module.random_inputs(form, n)),
        (norm_matvec(form := Form(64, *FORMATS[8], gains=1), 1e-5, "silu"), norm_module.random_inputs(form, n)),
        (norm_matvec(form := Form(64, *FORMATS[0], gains=2), 1e-5, "silu"), norm_module.random_inputs(form, n)),
        (
            residual_matvec(form := Form(64, *FORMATS[3]), False),
            residual_module.random_inputs(form, n, residual=False),
        ),
        (
            merge_matvec(form := Form(512, *FORMATS[6]), True, 8),
            [random_parts(8, 8, 64), *residual_module.random_inputs(form, n)[1:]],
        ),
    ]
    for kernel, inputs in cases:
        sample = kernel.sample(*inputs)
        wanted, launched = (variant_name(kernel.launch("cuda", *given), given) for given in (inputs, sample))
        assert launched == wanted
        assert all(shares(target, sample_rows(n), 4) == shares(target, n, 4) for target in ("metal", "cuda"))


def test_absent_parts_have_a_shape_of_their_own():
    form = Form(64, Format(16, 0, False), F16)
    parts = parts_of(form, random_sheet(form, 8))
    assert parts.scales is none(F16)
    assert parts.gains == ()
