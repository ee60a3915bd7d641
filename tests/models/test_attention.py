"""The CPU's way of attention beside MLX's own operation."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from russet.models.attention import BLOCK, for_cpu, fused


@pytest.mark.parametrize("heads", [(4, 4), (6, 2), (4, 1)])
@pytest.mark.parametrize("rows", [1, 2, BLOCK, BLOCK + 1, 3 * BLOCK - 5])
@pytest.mark.parametrize("cached", [0, 1, 70])
def test_equals_mlx(heads: tuple[int, int], rows: int, cached: int) -> None:
    mx.random.seed(rows + cached)
    queries = mx.random.normal((2, heads[0], rows, 16))
    keys, values = (mx.random.normal((2, heads[1], rows + cached, 16)) for _ in range(2))
    mask = "causal" if rows > 1 else None
    ours, theirs = (np.array(attend(queries, keys, values, 0.3, mask)) for attend in (for_cpu, fused))
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() < 2e-6


@pytest.mark.parametrize("rows", [1, 5])
def test_obeys_a_mask_of_booleans(rows: int) -> None:
    queries, keys, values = (mx.random.normal((1, 2, n, 8)) for n in (rows, 7, 7))
    mask = mx.array(np.arange(7)[None, :] % 2 == np.arange(rows)[:, None] % 2)  # type: ignore[arg-type]
    ours, theirs = (np.array(attend(queries, keys, values, 1.0, mask)) for attend in (for_cpu, fused))
    assert np.abs(ours - theirs).max() < 2e-6
    assert np.abs(ours - np.array(for_cpu(queries, keys, values, 1.0, None))).max() > 0.01
