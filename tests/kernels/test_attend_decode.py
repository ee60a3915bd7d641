from __future__ import annotations

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from kernel_runs import simulate_all_orders
from metalsim import COMPILER

from russet.kernels import attend_reference
from russet.kernels.attend_decode import (
    ATTEND_DECODE,
    ATTEND_SHARED,
    RECENT,
    Shape,
    pack_form,
    pack_step,
    random_inputs,
)
from russet.kernels.attend_reference import merge, plan, random_parts, splits_of
from russet.kernels.base import Inputs, variant_name

F16, BF16, F32, I8 = mx.float16, mx.bfloat16, mx.float32, mx.int8
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler: install g++ or clang++")
KERNELS = {True: ATTEND_DECODE, False: ATTEND_SHARED}
BASE = Shape(heads=3, kv_heads=1, dim=64, capacity=96, kept=70, recent=3)
CASES = {
    "plain": (BASE, F16),
    "two KV heads, one query head each": (replace(BASE, heads=2, kv_heads=2, dim=128, norm=0), BF16),
    "8 queries a KV head": (replace(BASE, heads=8, dim=128, norm=2), F16),
    "7 queries a KV head in uneven sets": (replace(BASE, heads=7, dim=32), F32),
    "dim 256": (replace(BASE, heads=4, dim=256, rotated=64), F16),
    "dim 96": (replace(BASE, heads=4, dim=96, norm=2, rotated=64, neighbours=True), F32),
    "dim 80": (replace(BASE, heads=2, dim=80, rotated=32, neighbours=True), F16),
    "int8": (replace(BASE, heads=8, dim=128), I8),
    "int8, dim 64": (replace(BASE, norm=0, neighbours=True), I8),
    "no rotation": (replace(BASE, rotated=0), F16),
    "empty buffers": (replace(BASE, kept=0, recent=0), F16),
    "empty main buffer": (replace(BASE, kept=0, recent=5), F16),
    "full ring": (replace(BASE, kept=96, recent=RECENT - 1), F16),
    "window": (replace(BASE, kept=90, first=61, recent=9, first_recent=0), F16),
    "window inside the ring": (replace(BASE, kept=70, first=70, recent=30, first_recent=13), F16),
    "several splits": (replace(BASE, kv_heads=2, heads=2, dim=128, capacity=400, kept=391), BF16),
    "several splits, few rows": (replace(BASE, capacity=1100, kept=20), F16),
}


def exact(shape: Shape, inputs: Inputs, owns: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Merged heads, new key and new value (as stored, before any rounding) in float64, a head at a time."""
    qkv, keys, values, recent, step, form = (np.array(x.astype(F32)).astype(np.float64) for x in inputs)
    rotation, weights, (key_scale, value_scale) = step[8:].reshape(2, -1), form[8:], form[6:8]
    projected = qkv.reshape(-1, shape.dim)
    turned = [_turn(shape, head, rotation, weights[: shape.dim]) for head in projected[: shape.heads]]
    new_keys, new_values = recent[:, :, shape.recent]
    if owns:
        new = projected[shape.heads : shape.heads + shape.kv_heads]
        new_keys = np.stack([_turn(shape, head, rotation, weights[shape.dim :]) for head in new]) / key_scale
        new_values = projected[shape.heads + shape.kv_heads :] / value_scale
    if inputs[1].dtype == I8:
        new_keys, new_values = (np.clip(np.rint(x), -128, 127) for x in (new_keys, new_values))
    out = []
    for head, query in enumerate(turned):
        at = head * shape.kv_heads // shape.heads
        seen, ring = slice(shape.first, shape.kept), slice(shape.first_recent, shape.recent)
        rows, mixed = (
            np.concatenate([main[0, at, seen], part[at, ring], new[at][None]]) * scale
            for main, part, new, scale in (
                (keys, recent[0], new_keys, key_scale),
                (values, recent[1], new_values, value_scale),
            )
        )
        scores = rows @ query * shape.dim**-0.5
        weights = np.exp(scores - scores.max())
        out.append(weights @ mixed / weights.sum())
    return np.concatenate(out), new_keys, new_values


def _turn(shape: Shape, x: np.ndarray, rotation: np.ndarray, weight: np.ndarray) -> np.ndarray:
    def norm(x: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x * x).mean() + 1e-6) * weight

    def rotate(x: np.ndarray) -> np.ndarray:
        x, dims = x.copy(), 2 * rotation.shape[1]
        if shape.neighbours:
            pairs = x[0:dims:2] + 1j * x[1:dims:2]
            turned = pairs * (rotation[0] + 1j * rotation[1])
            x[0:dims:2], x[1:dims:2] = turned.real, turned.imag
        else:
            turned = (x[: dims // 2] + 1j * x[dims // 2 : dims]) * (rotation[0] + 1j * rotation[1])
            x[:dims] = np.concatenate([turned.real, turned.imag])
        return x

    return rotate(x) if shape.norm == 0 else rotate(norm(x)) if shape.norm == 1 else norm(rotate(x))


def check(shape: Shape, dtype: mx.Dtype, inputs: Inputs, outputs: list[mx.array], owns: bool) -> None:
    parts, *rings = outputs
    expected, key, value = exact(shape, inputs, owns)
    found = np.array(merge(parts, shape.heads, shape.dim))
    # The new row is rounded to its storage, the others come as they are.
    unit = {I8: 0.0, F16: 2**-11, BF16: 2**-8, F32: 2**-24}[dtype]
    assert np.linalg.norm(found - expected) < (2e-6 + unit) * np.linalg.norm(expected)
    if owns:
        ring, old = (np.array(x.astype(F32)) for x in (rings[0], inputs[3]))
        others = np.arange(RECENT) != shape.recent
        np.testing.assert_array_equal(ring[:, :, others], old[:, :, others])
        np.testing.assert_allclose(ring[0, :, shape.recent], key, rtol=2 * unit + 1e-5, atol=1e-5)
        np.testing.assert_allclose(ring[1, :, shape.recent], value, rtol=2 * unit + 1e-5, atol=1e-5)


@needs_compiler
@pytest.mark.parametrize("owns", [True, False], ids=["decode", "shared"])
@pytest.mark.parametrize("name", CASES)
def test_the_metal_source_computes_attention(name, owns):
    shape, dtype = CASES[name]
    inputs = random_inputs(shape, dtype, owns)
    outputs = simulate_all_orders(KERNELS[owns], inputs)
    check(shape, dtype, inputs, outputs, owns)


@pytest.mark.parametrize("owns", [True, False], ids=["decode", "shared"])
@pytest.mark.parametrize("name", CASES)
def test_the_reference_computes_attention(name, owns):
    shape, dtype = CASES[name]
    inputs = random_inputs(shape, dtype, owns)
    check(shape, dtype, inputs, KERNELS[owns].reference(*inputs), owns)


@needs_compiler
def test_the_reference_cuts_the_rows_as_the_kernel_does():
    for name in ("several splits", "several splits, few rows"):
        shape, dtype = CASES[name]
        inputs = random_inputs(shape, dtype, owns=True)
        found, expected = simulate_all_orders(ATTEND_DECODE, inputs)[0], ATTEND_DECODE.reference(*inputs)[0]
        assert splits_of(expected, shape.heads, shape.dim) > 1
        np.testing.assert_allclose(np.array(found), np.array(expected), rtol=1e-3, atol=2e-4)


@needs_compiler
def test_unused_rows_of_the_ring_do_not_leak():
    inputs = random_inputs(BASE, F16, owns=True)
    used = (mx.arange(RECENT) < BASE.recent)[:, None]
    parts, _ = simulate_all_orders(ATTEND_DECODE, [*inputs[:3], mx.where(used, inputs[3], np.nan), *inputs[4:]])
    found = np.array(merge(parts, BASE.heads, BASE.dim))
    np.testing.assert_allclose(found, exact(BASE, inputs, True)[0], rtol=2e-3, atol=1.6e-2)


@needs_compiler
def test_scores_far_apart_stay_finite():
    inputs = random_inputs(replace(BASE, norm=0), F32, owns=True)
    parts, _ = simulate_all_orders(ATTEND_DECODE, [inputs[0] * 1e4, *inputs[1:]])
    assert np.isfinite(np.array(merge(parts, BASE.heads, BASE.dim))).all()


def test_parts_are_merged_by_their_weights():
    mixed, stats = [[[1.0] * 32], [[4.0] * 32]], [[[5.0, 2.0]], [[5.0 + np.log(2), 0.5]]]
    parts = mx.concatenate([mx.array(mixed).reshape(-1), mx.array(stats).reshape(-1)])
    assert splits_of(parts, 1, 32) == 2
    np.testing.assert_allclose(np.array(merge(parts, 1, 32)), 2.0, rtol=1e-6)  # (2 x 1 + 2 x 0.5 x 4) / 3


@pytest.mark.parametrize("splits", [1, 2, 16])
def test_random_parts_are_like_a_kernels(splits):
    parts = random_parts(splits, 3, 32)
    assert splits_of(parts, 3, 32) == splits
    assert np.isfinite(np.array(merge(parts, 3, 32))).all()
    totals = np.array(parts[splits * 96 :]).reshape(splits, 3, 2)[:, :, 1]
    assert (totals[-1] == 0).all() == (splits > 1)


def test_what_steps_and_layers_bring_is_packed_in_float32():
    step = pack_step((2**24 - 1, 31, 7, 3), np.array([[0.5, 0.25], [0.75, 1.5]]))
    assert step.tolist() == [2**24 - 1, 31, 7, 3, 0, 0, 0, 0, 0.5, 0.25, 0.75, 1.5]
    form = pack_form(0.5, 0.125, True, 16, False, 2.0, 3.0, mx.ones(32, F16), mx.zeros(32, BF16))
    assert form.tolist() == [0.5, 0.125, 1, 1, 16, 0, 2, 3] + [1] * 32 + [0] * 32
    bare = pack_form(0.5, 0.125, False, 0, True, 1.0, 1.0, None, None)
    assert bare.tolist() == [0.5, 0.125, 0, 0, 0, 1, 1, 1]
    assert {step.dtype, form.dtype, bare.dtype} == {F32}


@pytest.mark.parametrize("owns", [True, False], ids=["decode", "shared"])
@pytest.mark.parametrize("target", ["metal", "cuda"])
def test_a_sample_launches_the_variant_it_stands_for(target, owns):
    kernel = KERNELS[owns]
    shapes = [shape for shape, _ in CASES.values()]
    large = [replace(BASE, heads=32, kv_heads=8, dim=128, capacity=4096), replace(BASE, heads=9, kv_heads=3, norm=0)]
    real = (random_inputs(shape, F16, owns) for shape in (*shapes, *large))
    for inputs in (*kernel.examples(target), *real):
        sample = kernel.sample(*inputs)
        wanted, launched = (variant_name(kernel.launch(target, *given), given) for given in (inputs, sample))
        assert launched == wanted
        assert sum(array.nbytes for array in sample) < 3_000_000
        outputs = kernel.reference(*sample)
        assert not any(mx.isnan(output).any() for output in outputs), "the check would never pass"
        assert mx.abs(outputs[0]).max() < 1e4, "an empty split would hide what is mixed"


@pytest.mark.parametrize("dim", range(32, 257, 16))
@pytest.mark.parametrize("dtype", [F16, F32, mx.int8])
def test_every_head_size_fits_a_simdgroup_and_threadgroup_memory(dim, dtype):
    for group in range(1, 17):
        cut = plan("metal", 2 * group, mx.zeros((1, 2, 64, dim), dtype))
        features = dim // cut.lanes
        assert features * cut.lanes == dim
        assert features % 4 == 0
        assert cut.steps <= cut.lanes
        assert cut.heads * cut.sets >= group
        floats = (cut.heads + 2) * dim + attend_reference.SIMDGROUPS * cut.heads * (dim + 2)
        assert 4 * floats <= 32 << 10


def test_long_caches_are_split_over_the_device():
    keys = mx.zeros((1, 2, 8192, 128), F16)
    assert plan("cuda", 16, keys).splits == 16
    assert plan("cuda", 64, mx.zeros((1, 64, 8192, 128), F16)).splits == 2
    assert plan("metal", 16, keys[:, :, :128]).splits == 1
    for heads in range(1, 40):
        assert plan("cuda", heads, mx.zeros((1, heads, 2048, 128), F16)).splits in (1, 2, 4, 8, 16)
