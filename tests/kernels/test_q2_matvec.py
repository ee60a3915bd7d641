from __future__ import annotations

from itertools import product

import mlx.core as mx
import numpy as np
import pytest
from kernel_runs import simulate, simulate_all_orders
from metalsim import COMPILER

from russet.kernels import q2_matvec as module
from russet.kernels.base import relative_error, variant_name
from russet.kernels.q2_matvec import LANES, TILES, q2_matvec, random_inputs

F16, BF16, F32 = mx.float16, mx.bfloat16, mx.float32
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler: install g++ or clang++")


def exact(x: mx.array, w: mx.array, scales: mx.array) -> np.ndarray:
    """The product in float64, from the definition of the packing."""
    q = np.array(w)[:, :, None] >> (2 * np.arange(16, dtype=np.uint32)) & 3
    levels = q.reshape(w.shape[0], -1) - 1.5
    wide = np.array(scales.astype(F32)).astype(np.float64)
    wide = wide[:, None] if wide.ndim == 1 else np.repeat(wide, levels.shape[1] // wide.shape[1], 1)
    return np.array(x.astype(F32)).astype(np.float64) @ (levels * wide).T


def error(found: mx.array, expected: np.ndarray) -> float:
    return float(np.linalg.norm(np.array(found.astype(F32)) - expected) / np.linalg.norm(expected))


# Rounding of the result: half a unit in the last place, and a little of the sum's own.
ALLOWED = {F16: 3e-4, BF16: 2.4e-3, F32: 2e-6}


@needs_compiler
@pytest.mark.parametrize("kernel", [TILES, LANES], ids=lambda kernel: kernel.name)
@pytest.mark.parametrize(
    ("rows", "n", "k", "group", "dtype", "scale_dtype"),
    [
        (1, 40, 1024, 0, F16, F16),  # 4 words a load
        (1, 9, 4160, 0, F16, F16),  # 8 loads of a word in flight, and a last round that begins earlier
        (2, 17, 384, 0, BF16, F32),  # 2 words a load, and outputs that fill no tile
        (3, 8, 576, 0, F32, F16),  # 1 word a load, and steps that end inside a round
        (4, 24, 192, 32, F16, BF16),
        (5, 23, 576, 64, F32, F32),
        (9, 16, 640, 128, BF16, BF16),
        (1, 8, 4480, 64, F16, F16),  # a second round, and not a whole one
        (16, 9, 64, 64, F16, F16),  # less input than a round takes
        (8, 23, 1024, 64, F16, F16),  # lanes read 4 words and 4 scales at once, and change places
        (3, 9, 768, 128, BF16, BF16),  # 2 scales at once
        (7, 17, 512, 64, F16, F32),
        (4, 8, 2304, 128, BF16, F32),  # a last part that begins earlier
    ],
)
def test_the_metal_source_computes_the_product(kernel, rows, n, k, group, dtype, scale_dtype):
    inputs = random_inputs(rows, n, k, group, dtype, scale_dtype)
    (y,) = simulate_all_orders(kernel, inputs)
    assert (y.shape, y.dtype) == ((rows, n), dtype)
    assert error(y, exact(*inputs)) < ALLOWED[dtype]


@needs_compiler
@pytest.mark.parametrize(
    ("rows", "k", "group"),
    [(1, 512, 64), (4, 2560, 0), (8, 2560, 128), (16, 2560, 64)],  # the input in one slice and in two or three
)
def test_a_threadgroup_goes_through_several_tiles(monkeypatch, rows, k, group):
    monkeypatch.setattr(module, "CORES", 1)
    inputs = random_inputs(rows, 104, k, group, F16, F16)  # three tiles, and four of which the last is half one
    assert error(simulate(TILES, inputs)[0], exact(*inputs)) < ALLOWED[F16]


@needs_compiler
@pytest.mark.parametrize("group", [0, 64])
def test_the_sums_of_some_tiles_at_a_time(monkeypatch, group):
    """As CUDA takes 8 rows: threadgroup memory has room for 4 of 7 tiles."""
    monkeypatch.setattr(module, "CORES", 1)
    monkeypatch.setattr(module, "_TILE_SIMDGROUPS", {"metal": 16})
    inputs = random_inputs(8, 104, 512, group, F16, F16)
    template = dict(TILES.launch("metal", *inputs).template)
    assert (template["TILES"], template["PHASE"]) == (7, 3)
    assert error(simulate_all_orders(TILES, inputs)[0], exact(*inputs)) < ALLOWED[F16]


@needs_compiler
@pytest.mark.parametrize("kernel", [TILES, LANES], ids=lambda kernel: kernel.name)
def test_a_large_mean_does_not_cancel(kernel):
    x, w, scales = random_inputs(2, 16, 512, 64, F32, F32)
    assert error(simulate(kernel, (x + 30, w, scales))[0], exact(x + 30, w, scales)) < ALLOWED[F32]


@pytest.mark.parametrize("group", [0, 32, 64, 128])
@pytest.mark.parametrize("dtype", [F16, BF16, F32])
def test_the_reference_is_exact_to_the_rounding_of_y(group, dtype):
    inputs = random_inputs(3, 20, 384, group, dtype, dtype)
    assert error(q2_matvec(*inputs), exact(*inputs)) < ALLOWED[dtype]


def test_any_leading_axes_and_many_rows():
    x, w, scales = random_inputs(20, 12, 96, 32, F32, F32)
    y = q2_matvec(x.reshape(2, 10, 96), w, scales)
    assert y.shape == (2, 10, 12)
    assert error(y.reshape(20, 12), exact(x, w, scales)) < ALLOWED[F32]


@pytest.mark.parametrize(("rows", "n", "k"), [(17, 16, 128), (2, 7, 128), (2, 16, 96)])
def test_what_the_kernels_do_not_take_goes_to_mlx(monkeypatch, rows, n, k):
    for name in ("TILES", "LANES"):
        monkeypatch.setattr(module, name, lambda *_: pytest.fail("a kernel was asked"))
    inputs = random_inputs(rows, n, k, 32, F32, F32)
    assert error(q2_matvec(*inputs), exact(*inputs)) < ALLOWED[F32]


@pytest.mark.parametrize("part", [0, 1, 2])
def test_shapes_that_do_not_match_are_refused(part):
    inputs = list(random_inputs(2, 16, 128, 64, F32, F32))
    inputs[part] = inputs[part][:-1] if part else inputs[part][:, :64]
    with pytest.raises(ValueError, match="do not make a 2-bit product"):
        q2_matvec(*inputs)


@pytest.mark.parametrize(
    ("target", "rows", "dtype", "chosen"),
    [
        ("metal", 1, F16, LANES),
        ("metal", 5, F32, TILES),
        ("cuda", 1, BF16, TILES),
        ("cuda", 8, F32, LANES),
    ],
)
def test_the_body_suits_the_device(monkeypatch, target, rows, dtype, chosen):
    called = []
    monkeypatch.setattr(module, "backend", lambda: target)
    for kernel in (TILES, LANES):
        monkeypatch.setattr(
            type(kernel), "__call__", lambda self, x, w, s: called.append(self) or self.reference(x, w, s)
        )
    q2_matvec(*random_inputs(rows, 16, 128, 64, dtype, dtype))
    assert called == [chosen]


@pytest.mark.parametrize("kernel", [TILES, LANES], ids=lambda kernel: kernel.name)
@pytest.mark.parametrize("target", ["metal", "cuda"])
def test_a_sample_launches_the_variant_it_stands_for(kernel, target):
    shapes = [(576, 1536, 64), (4096, 4096, 32), (14336, 4096, 128), (14336, 2048, 0), (40, 64, 0), (40, 128, 128)]
    shapes += [(40, 320, 0), (40, 4160, 0), (40, 4224, 0)]  # one word and two at once, few of them and many
    real = (random_inputs(rows, n, k, group, F16, F16) for rows in (1, 3) for n, k, group in shapes)
    for inputs in (*kernel.examples(target), *real):
        sample = kernel.sample(*inputs)
        wanted, launched = (variant_name(kernel.launch(target, *given), given) for given in (inputs, sample))
        assert launched == wanted
        assert sum(array.nbytes for array in sample) < 3_000_000


@pytest.mark.parametrize("target", ["metal", "cuda"])
def test_sums_and_held_input_stay_within_what_a_threadgroup_has(target):
    for rows, n, group in product(range(1, 17), (40, 4096, 14336, 32000), (0, 32, 64, 128)):
        inputs = (mx.zeros((rows, 4096), F16), mx.zeros((n, 256), mx.uint32))
        scales = mx.zeros((n, 4096 // group) if group else (n,), F16)
        t = dict(TILES.launch(target, *inputs, scales).template)
        columns = t["ROWS"] * max(1, 64 * t["RUN"] // group if group else 1)
        assert t["PHASE"] >= 1 and t["SIMDGROUPS"] * t["PHASE"] * 16 * columns * 4 <= 32768
        # Eight 32-bit registers a word and matrix on CUDA, twice as many on Metal.
        assert t["HELD"] * t["RUN"] * -(-columns // 8) * 8 <= 64


def test_relative_error_is_nan_where_a_result_is():
    assert np.isnan(relative_error(mx.array([float("nan"), 1.0]), mx.ones((2,))))
