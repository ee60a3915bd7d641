from __future__ import annotations

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from kernel_runs import simulate_all_orders
from metalsim import COMPILER, metal_kernel

from russet.kernels import backend as sources
from russet.kernels import base
from russet.kernels import sigmoid_attention as module
from russet.kernels.base import variant_name
from russet.kernels.sigmoid_attention import DECODE, PREFILL, random_inputs, reference, sigmoid_attention

F16, BF16, F32 = mx.float16, mx.bfloat16, mx.float32
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler: install g++ or clang++")


def exact(queries, keys, values, rule, seen=None) -> np.ndarray:
    """The definition in float64; `seen` [R, N] says what each row sees, causally if it is left out."""
    q, k, v, (scale, bias, weight, *_) = (
        np.array(x.astype(F32)).astype(np.float64) for x in (queries, keys, values, rule)
    )
    rows, n, group = q.shape[2], k.shape[2], q.shape[1] // k.shape[1]
    if seen is None:
        seen = np.arange(n) < n - rows + 1 + np.arange(rows)[:, None]
    scores = q @ np.repeat(k, group, 1).swapaxes(2, 3) * scale + bias - weight * np.log(seen.sum(1))[:, None]
    return np.where(seen, 1 / (1 + np.exp(-scores)), 0) @ np.repeat(v, group, 1)


def error(found: mx.array, expected: np.ndarray) -> float:
    return float(np.linalg.norm(np.array(found.astype(F32)) - expected) / np.linalg.norm(expected))


# The rounding of the result, and a little of the sum's own.
ALLOWED = {F16: 3e-4, BF16: 2.4e-3, F32: 1e-6}


@needs_compiler
@pytest.mark.parametrize(
    "shape",
    [
        (6, 2, 20, 45, 64, F16, None, 2),  # heads, key heads, rows, keys, head size, type, b, batch
        (2, 2, 70, 70, 128, BF16, -3.0, 1),  # two blocks of rows, three of keys
        (8, 1, 5, 37, 96, F32, None, 1),
    ],
)
def test_the_metal_prefill_computes_its_definition(shape):
    *sizes, dtype, bias, batch = shape
    inputs = random_inputs(*sizes, dtype, bias, batch)
    (out,) = simulate_all_orders(PREFILL, inputs)
    assert (out.shape, out.dtype) == ((batch, sizes[2], sizes[0], sizes[4]), dtype)
    assert error(out.transpose(0, 2, 1, 3), exact(*inputs)) < ALLOWED[dtype]


@needs_compiler
@pytest.mark.parametrize("chosen", [{"tiles": 1, "step": 32}, {"tiles": 2, "step": 16}], ids=str)
def test_two_buffers_wait_for_each_other(chosen):
    """The order of copies and products that CUDA runs, in as much memory as Metal has."""
    inputs = random_inputs(2, 1, 75, 140, 64, F16)
    launch = module._prefill(inputs[0], keys=32, buffers=2, **chosen)
    kernel = replace(PREFILL, launch=lambda *_: launch)
    assert error(simulate_all_orders(kernel, inputs)[0].transpose(0, 2, 1, 3), exact(*inputs)) < ALLOWED[F16]


@needs_compiler
@pytest.mark.parametrize(
    ("shape", "parts"),
    [
        ((3, 1, 1, 45, 64, F16, None, 2), 1),
        ((6, 3, 1, 45, 64, F16, None, 1), 1),  # several heads for each of several key heads
        ((2, 2, 1, 301, 128, BF16, -3.0, 1), 4),  # parts of unequal size
        ((8, 1, 1, 130, 96, F32, None, 1), 2),
        ((1, 1, 1, 3, 256, F16, None, 1), 1),
    ],
)
def test_the_metal_decode_computes_its_definition(shape, parts):
    *sizes, dtype, bias, batch = shape
    inputs = random_inputs(*sizes, dtype, bias, batch)
    (out,) = simulate_all_orders(DECODE, inputs)
    assert (out.shape, out.dtype) == ((parts, batch, sizes[0], 1, sizes[4]), dtype if parts == 1 else F32)
    assert error(out.astype(F32).sum(axis=0), exact(*inputs)) < (ALLOWED[dtype] if parts == 1 else 1e-6)


@pytest.fixture
def simulated(monkeypatch):
    """Both kernels serve, on the simulator in the place of a GPU; what ran is listed."""
    ran = []

    def build(name, body, headers, inputs, outputs, target, strided):
        source, header = sources.body(body, inputs, target), sources.header(headers, target)
        run = metal_kernel(name, inputs, outputs, source, header, not strided)
        return lambda **options: ran.append(name) or run(**options)

    monkeypatch.delenv("RUSSET_KERNELS", raising=False)
    base.mode.cache_clear()
    monkeypatch.setattr(base, "backend", lambda: "metal")
    monkeypatch.setattr(base, "build", build)
    for name, kernel in (("PREFILL", PREFILL), ("DECODE", DECODE)):
        monkeypatch.setattr(module, name, replace(kernel))
    yield ran
    base.mode.cache_clear()


@needs_compiler
@pytest.mark.parametrize(
    ("shape", "ran"),
    [
        ((3, 1, 20, 45, 64, F16), ["sigmoid_prefill"] * 2),  # the self-check, then the call
        ((2, 2, 1, 301, 128, BF16), ["sigmoid_decode"] * 2),
        ((2, 2, 1, 40, 20, F16), []),
        ((2, 2, 8, 40, 136, F16), []),
    ],
)
def test_a_kernel_serves_where_it_can(simulated, shape, ran):
    *inputs, _ = random_inputs(*shape)
    out = sigmoid_attention(*inputs, 0.2, None)
    assert (out.shape, out.dtype, simulated) == (inputs[0].shape, shape[-1], ran)
    assert error(out, exact(*inputs, module._rule(0.2, None))) < ALLOWED[shape[-1]]


@pytest.mark.parametrize("dtype", [F16, BF16, F32])
@pytest.mark.parametrize("kernel", [PREFILL, DECODE], ids=lambda kernel: kernel.name)
def test_the_references_compute_the_definition(kernel, dtype):
    inputs = random_inputs(6, 2, 1 if kernel is DECODE else 9, 200, 64, dtype, batch=2)
    out = kernel.reference(*inputs)[0]
    out = out.astype(F32).sum(axis=0) if kernel is DECODE else out.transpose(0, 2, 1, 3)
    assert error(out, exact(*inputs)) < ALLOWED[dtype]
    assert [out.shape for out in kernel.reference(*inputs)] == list(kernel.launch("metal", *inputs).output_shapes)


def test_the_reference_takes_a_few_rows_at_a_time(monkeypatch):
    inputs = random_inputs(4, 2, 23, 31, 16, F32)
    monkeypatch.setattr(module, "_REFERENCE_SCORES", 4 * 31 * 5)
    assert error(reference(*inputs), exact(*inputs)) < ALLOWED[F32]


@pytest.mark.parametrize("rows", [1, 9])
def test_a_mask_says_what_is_seen_and_counted(rows):
    *inputs, rule = random_inputs(4, 2, rows, 31, 16, F32)
    seen = (np.arange(31) * 7 + np.arange(rows)[:, None]) % 3 > 0
    out = sigmoid_attention(*inputs, 0.25, None, mx.array(seen))
    assert error(out, exact(*inputs, rule, seen)) < ALLOWED[F32]
    everything = sigmoid_attention(*inputs, 0.25, None, None)
    assert error(everything, exact(*inputs, rule, np.ones_like(seen))) < ALLOWED[F32]


@pytest.mark.parametrize(("part", "axis"), [(0, 3), (1, 2), (2, 1), (1, 0)])
def test_shapes_that_do_not_match_are_refused(part, axis):
    *inputs, _ = random_inputs(6, 2, 3, 31, 16, F32, batch=2)
    inputs[part] = mx.take(inputs[part], mx.arange(inputs[part].shape[axis] - 1), axis=axis)
    with pytest.raises(ValueError, match="do not make attention"):
        sigmoid_attention(*inputs, 0.25, None)


@pytest.mark.parametrize("target", ["metal", "cuda"])
@pytest.mark.parametrize("kernel", [PREFILL, DECODE], ids=lambda kernel: kernel.name)
def test_a_sample_launches_the_variant_it_stands_for(kernel, target):
    rows = 1 if kernel is DECODE else 400
    real = (random_inputs(h, kv, rows, 500, d, F16) for h, kv, d in ((9, 3, 64), (8, 8, 128), (16, 2, 128)))
    for inputs in (*kernel.examples(target), *real):
        sample = kernel.sample(*inputs)
        wanted, launched = (variant_name(kernel.launch(target, *given), given) for given in (inputs, sample))
        assert launched == wanted
        assert sum(array.nbytes for array in sample) < 3_000_000


def test_cuda_rounds_no_float32(monkeypatch):
    monkeypatch.setattr(module, "backend", lambda: "cuda")
    monkeypatch.setattr(module, "PREFILL", lambda *_: pytest.fail("the kernel was asked"))
    *inputs, rule = random_inputs(2, 1, 9, 12, 64, F32)
    assert error(sigmoid_attention(*inputs, 64**-0.5, None), exact(*inputs, rule)) < ALLOWED[F32]
