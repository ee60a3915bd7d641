"""MLX's rotary operation turns rows at any whole positions as the tables do, which alone take fractional ones."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from russet.models.config import Rope, RopeScaling
from russet.models.rope import Rotary

YARN = RopeScaling(kind="yarn", factor=4.0, original_length=32, attention_factor=1.1)
ROPES = [
    Rope(dims=8, theta=10000.0),
    Rope(dims=6, theta=500.0),
    Rope(dims=8, theta=100.0, interleaved=True),
    Rope(dims=8, theta=100.0, scaling=YARN),
]


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("batch", [1, 3])
def test_positions_with_gaps_through_the_fused_operation(rope: Rope, batch: int) -> None:
    rotary = Rotary(rope)
    x = mx.random.normal((batch, 2, 5, 8))
    positions = np.array([0, 3, 4, 17, 40], dtype=np.float64)
    by_tables = np.array(rotary.at(positions, 5, fused=False)(x))
    fused = np.array(rotary.at(positions.copy(), 5, fused=True)(x))
    assert fused == pytest.approx(by_tables, abs=2e-5)
    # Each row at its own position, as one alone would be.
    alone = np.array(rotary.at(17, 1, fused=True)(x[:, :, 3:4]))
    assert fused[:, :, 3:4] == pytest.approx(alone, abs=2e-5)


def test_fractional_positions_are_not_rounded() -> None:
    rotary = Rotary(ROPES[0])
    x = mx.random.normal((1, 2, 3, 8))
    positions = np.array([0.5, 1.75, 9.0])
    found = np.array(rotary.at(positions, 3, fused=True)(x))
    assert found == pytest.approx(np.array(rotary.at(positions.copy(), 3, fused=False)(x)), abs=2e-5)
    assert np.abs(found - np.array(rotary.at(np.floor(positions), 3, fused=True)(x))).max() > 0.01
