"""The norm that is trained has the gradients of the one that is not."""

from __future__ import annotations

import mlx.core as mx
import pytest

from russet.models.norm import RMSNorm, TrainedNorm


@pytest.mark.parametrize("rows", [1, 9])
def test_the_trained_norm_s_gradients_are_mlx_s(rows: int) -> None:
    keys = mx.random.split(mx.random.key(0), 3)
    x, outer = mx.random.normal((2, rows, 64), key=keys[0]) * 3, mx.random.normal((2, rows, 64), key=keys[1])
    weight = mx.random.normal((64,), key=keys[2])

    def gradients(kind: type[RMSNorm]) -> list[mx.array]:
        return mx.grad(lambda x, weight: (kind(weight, 1e-5)(x) * outer).sum(), argnums=(0, 1))(x, weight)

    for ours, theirs in zip(gradients(TrainedNorm), gradients(RMSNorm), strict=True):
        assert ours.shape == theirs.shape
        assert mx.abs(theirs).max().item() > 0.1
        assert mx.allclose(ours, theirs, rtol=1e-4, atol=1e-5)
