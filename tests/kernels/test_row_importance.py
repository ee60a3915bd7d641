from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from russet.kernels.row_importance import last_row_importance


def random_inputs(heads: int, kv_heads: int, n: int, dim: int, dtype: mx.Dtype) -> tuple[mx.array, mx.array]:
    keys = mx.random.split(mx.random.key(heads * n + dim), 2)
    queries = mx.random.normal((1, heads, 1, dim), key=keys[0]).astype(dtype)
    return queries, mx.random.normal((1, kv_heads, n, dim), key=keys[1]).astype(dtype)


def exact(queries: mx.array, keys: mx.array, scale: float) -> np.ndarray:
    q, k = (np.array(x.astype(mx.float32))[0].astype(np.float64) for x in (queries, keys))
    scores = np.stack([scale * k[h * len(k) // len(q)] @ q[h, 0] for h in range(len(q))])
    weights = np.exp(scores - scores.max(1, keepdims=True))
    return (weights / weights.sum(1, keepdims=True)).mean(0)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16, mx.float32])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (9, 3), (8, 1)])
def test_it_is_the_mean_over_heads_of_the_softmax(heads, kv_heads, dtype):
    queries, keys = random_inputs(heads, kv_heads, 45, 64, dtype)
    found = last_row_importance(queries, keys, 0.5)
    assert (found.shape, found.dtype) == ((45,), mx.float32)
    np.testing.assert_allclose(np.array(found), exact(queries, keys, 0.5), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("wrong", ["rows", "dim", "heads"])
def test_shapes_that_do_not_match_are_refused(wrong):
    queries, keys = random_inputs(4, 2, 12, 64, mx.float32)
    queries = {"rows": mx.repeat(queries, 2, axis=2), "dim": queries[..., :32], "heads": queries[:, :3]}[wrong]
    with pytest.raises(ValueError, match="do not make one row of attention"):
        last_row_importance(queries, keys, 1.0)
