"""Which way a packed linear map takes for a few rows."""

from __future__ import annotations

import mlx.core as mx
import pytest

from russet.models import linear as linear_module
from russet.models.linear import Affine, Quantized


def packed(low: float, bits: int = 2) -> Affine:
    """Weights [24, 128] in groups of 64 whose least level is `low` scale."""
    w = mx.random.randint(0, 1 << 16, (24, 128 * bits // 32), mx.uint32, mx.random.key(1))
    scales = mx.random.uniform(0.5, 1, (24, 2), key=mx.random.key(2))
    return Affine(w, scales, low * scales, 64, bits)


@pytest.fixture
def through_kernel(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """As if the kernel served here; the rows of each call to it."""
    calls: list[int] = []
    real = linear_module.q2_matvec

    def noted(x: mx.array, w: mx.array, scales: mx.array) -> mx.array:
        calls.append(x.size // x.shape[-1])
        return real(x, w, scales)

    monkeypatch.setattr(linear_module, "q2_serves", lambda: True)
    monkeypatch.setattr(linear_module, "q2_matvec", noted)
    return calls


def test_a_few_rows_of_balanced_weights_take_the_kernel(through_kernel: list[int]) -> None:
    weight = packed(-1.5)
    bias = mx.random.normal((24,), key=mx.random.key(4))
    for rows in (1, 2, 16, 17):
        x = mx.random.normal((1, rows, 128), key=mx.random.key(rows))
        expected = x @ weight.expand(mx.float32).T + bias
        assert mx.allclose(Quantized(weight, bias)(x), expected, rtol=1e-4, atol=1e-4)
    assert through_kernel == [2, 16]


@pytest.mark.parametrize("weight", [packed(-1.25), packed(-7.5, bits=4)], ids=["offsets of their own", "4 bits"])
def test_other_weights_do_not(weight: Affine, through_kernel: list[int]) -> None:
    x = mx.random.normal((3, 128), key=mx.random.key(3))
    assert mx.allclose(Quantized(weight)(x), x @ weight.expand(mx.float32).T, rtol=1e-4, atol=1e-4)
    assert through_kernel == []
