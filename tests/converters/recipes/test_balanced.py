"""Balanced 2-bit weights: their levels, gradients against finite differences, and what MLX makes of them."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from russet.converters.recipes.balanced import (
    GROUPS,
    check_group,
    codes,
    levels,
    nearest_scales,
    pack,
    quantize,
    store,
    stored_scales,
)
from russet.engine.errors import InvalidOptionError

WEIGHTS = mx.array(np.random.default_rng(0).normal(size=(8, 128)).astype(np.float32))


def error(scales: mx.array) -> float:
    return mx.square(levels(WEIGHTS, scales) - WEIGHTS).mean().item()


def test_every_weight_goes_to_its_nearest_level() -> None:
    scales = mx.full((8, 2), 0.5)
    every = np.array([-0.75, -0.25, 0.25, 0.75], np.float32)
    nearest = every[np.abs(np.array(WEIGHTS)[..., None] - every).argmin(-1)]
    assert np.array_equal(np.array(levels(WEIGHTS, scales)), nearest)


@pytest.mark.parametrize("group", GROUPS)
def test_scales_are_the_ones_with_the_least_error(group: int) -> None:
    scales = nearest_scales(WEIGHTS, group)
    assert scales.shape == (8, 128 // (group or 128))
    assert 0.09 < error(scales) < 0.125, "Lloyd's bound for four even levels of normal numbers is 0.119"
    for change in (0.97, 1.03):
        assert error(scales * change) > error(scales)


def test_gradients_are_those_of_finite_differences() -> None:
    """Of the function with a slope that the gradients stand for: clipped weights, plus what rounding adds, held."""
    scales = nearest_scales(WEIGHTS, 64)
    onto = np.random.default_rng(1).normal(size=WEIGHTS.shape)
    loss = lambda w, s: (quantize(w, s) * mx.array(onto.astype(np.float32))).sum()  # noqa: E731
    found = [np.array(part) for part in mx.grad(loss, argnums=(0, 1))(WEIGHTS, scales)]
    point = [np.array(WEIGHTS, np.float64), np.array(scales, np.float64)]

    def clipped(weights: np.ndarray, scales: np.ndarray) -> np.ndarray:
        return np.clip(weights.reshape(*scales.shape, -1) / scales[..., None], -2, 2)

    added = np.array(codes(WEIGHTS, scales)).reshape(8, 2, 64) - 1.5 - clipped(*point)
    assert 0 < (np.abs(clipped(*point)) == 2).sum() < 100, "some weights are beyond the outermost levels"

    def smooth(weights: np.ndarray, scales: np.ndarray) -> float:
        return float((((clipped(weights, scales) + added) * scales[..., None]).reshape(onto.shape) * onto).sum())

    for which, step in ((0, 1e-6), (1, 1e-6)):
        for i in range(point[which].size):
            moved = [[part.copy() for part in point] for _ in range(2)]
            moved[0][which].flat[i] -= step
            moved[1][which].flat[i] += step
            slope = (smooth(*moved[1]) - smooth(*moved[0])) / (2 * step)
            assert slope == pytest.approx(found[which].flat[i], rel=1e-3, abs=1e-3), (which, i)


def test_a_stored_scale_moves_by_a_quarter_percent_at_most_and_keeps_its_gradient() -> None:
    scales = mx.array(np.geomspace(1e-3, 100, 5000).astype(np.float32))
    kept = stored_scales(scales)
    assert kept.dtype == mx.float16 and mx.all(kept.view(mx.uint16) & 3 == 0).item()
    assert mx.abs(store(scales) / scales - 1).max().item() < 2**-9 + 2**-11
    assert mx.array_equal(mx.grad(lambda s: (store(s) * 3).sum())(scales), mx.full(scales.shape, 3.0))


def test_a_group_of_zeros_has_a_scale() -> None:
    for scales in (nearest_scales(mx.zeros((2, 64)), 64), stored_scales(mx.zeros((2, 1))).astype(mx.float32)):
        assert scales.min().item() > 0
        assert mx.abs(levels(mx.zeros((2, 64)), scales)).max().item() < 1e-3


@pytest.mark.parametrize("group", GROUPS[1:])
def test_mlx_reads_the_same_weights_from_its_affine_form(group: int) -> None:
    scales = stored_scales(nearest_scales(WEIGHTS, group))
    packed = pack(codes(WEIGHTS, scales.astype(mx.float32)))
    read = mx.dequantize(packed, scales, -1.5 * scales, group, 2)
    assert mx.array_equal(read.astype(mx.float32), levels(WEIGHTS, scales.astype(mx.float32)))


@pytest.mark.parametrize(
    ("group", "width", "problem"),
    [
        (0, 56, "Rows of 56 weights do not fill words of 16"),
        (48, 96, "must be 0, 32, 64, 128"),
        (128, 576, "Rows of 576 .* 128; take 32, or 64, or 0 for"),
    ],
)
def test_groups_that_do_not_fit_are_refused(group: int, width: int, problem: str) -> None:
    with pytest.raises(InvalidOptionError, match=problem):
        check_group(group, width)
