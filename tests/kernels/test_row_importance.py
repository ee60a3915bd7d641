from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from kernel_runs import simulate_all_orders
from metalsim import COMPILER

from russet.kernels import row_importance as module
from russet.kernels.base import variant_name
from russet.kernels.row_importance import ROWS, STATS, last_row_importance, random_inputs

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler: install g++ or clang++")


def exact(queries: mx.array, keys: mx.array, scale: float) -> np.ndarray:
    q, k = (np.array(x.astype(mx.float32))[0].astype(np.float64) for x in (queries, keys))
    scores = np.stack([scale * k[h * len(k) // len(q)] @ q[h, 0] for h in range(len(q))])
    weights = np.exp(scores - scores.max(1, keepdims=True))
    return (weights / weights.sum(1, keepdims=True)).mean(0)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16, mx.float32])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (9, 3), (8, 1)])
def test_it_is_the_mean_over_heads_of_the_softmax(heads, kv_heads, dtype):
    queries, keys, _ = random_inputs(heads, kv_heads, 45, 64, dtype, dtype)
    found = last_row_importance(queries, keys, 0.5)
    assert (found.shape, found.dtype) == ((45,), mx.float32)
    np.testing.assert_allclose(np.array(found), exact(queries, keys, 0.5), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("wrong", ["rows", "dim", "heads"])
def test_shapes_that_do_not_match_are_refused(wrong):
    queries, keys, _ = random_inputs(4, 2, 12, 64, mx.float32, mx.float32)
    queries = {"rows": mx.repeat(queries, 2, axis=2), "dim": queries[..., :32], "heads": queries[:, :3]}[wrong]
    with pytest.raises(ValueError, match="do not make one row of attention"):
        last_row_importance(queries, keys, 1.0)


@needs_compiler
@pytest.mark.parametrize(
    ("heads", "kv_heads", "n", "dim", "dtype", "key_dtype"),
    [
        (9, 3, 600, 64, mx.float16, mx.float16),  # 2 splits
        (7, 1, 45, 32, mx.float32, mx.bfloat16),  # uneven sets of heads
        (8, 4, 130, 128, mx.bfloat16, mx.bfloat16),
        (2, 2, 1, 80, mx.float16, mx.float32),  # a single key
        (2, 1, 77, 256, mx.float32, mx.float32),
    ],
)
def test_the_metal_source_computes_importance(heads, kv_heads, n, dim, dtype, key_dtype):
    queries, keys, constants = random_inputs(heads, kv_heads, n, dim, dtype, key_dtype)
    (stats,) = simulate_all_orders(STATS, (queries, keys, constants))
    np.testing.assert_allclose(np.array(stats), np.array(STATS.reference(queries, keys, constants)[0]), rtol=1e-4)
    (found,) = simulate_all_orders(ROWS, (queries, keys, stats, constants))
    np.testing.assert_allclose(np.array(found), exact(queries, keys, dim**-0.5), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("dim", [16, 40, 272])
def test_heads_that_the_kernels_do_not_take_go_to_mlx(monkeypatch, dim):
    monkeypatch.setattr(module, "backend", lambda: "metal")
    monkeypatch.setattr(module, "STATS", lambda *_: pytest.fail("the kernel was asked"))
    queries, keys, _ = random_inputs(4, 2, 45, dim, mx.float32, mx.float32)
    np.testing.assert_allclose(
        np.array(last_row_importance(queries, keys, 0.2)), exact(queries, keys, 0.2), rtol=1e-4, atol=1e-7
    )


def test_the_references_of_both_kernels_make_the_importance(monkeypatch):
    queries, keys, constants = random_inputs(9, 3, 600, 64, mx.float16, mx.float16)
    (stats,) = STATS.reference(queries, keys, constants)
    (found,) = ROWS.reference(queries, keys, stats, constants)
    np.testing.assert_allclose(np.array(found), exact(queries, keys, 0.125), rtol=1e-4, atol=1e-7)
    monkeypatch.setattr(module, "backend", lambda: "metal")
    served = last_row_importance(queries, keys, 0.125)
    np.testing.assert_array_equal(np.array(served), np.array(found))


@pytest.mark.parametrize("kernel", [STATS, ROWS], ids=lambda kernel: kernel.name)
@pytest.mark.parametrize("target", ["metal", "cuda"])
def test_a_sample_launches_the_variant_it_stands_for(kernel, target):
    real = random_inputs(32, 8, 4096, 128, mx.float16, mx.float16)
    extra = [real] if kernel is STATS else [module._with_stats(real)]
    for inputs in (*kernel.examples(target), *extra):
        sample = kernel.sample(*inputs)
        wanted, launched = (variant_name(kernel.launch(target, *given), given) for given in (inputs, sample))
        assert launched == wanted
        assert sum(array.nbytes for array in sample) < 3_000_000
