"""AdamW against NumPy, the schedule, and what decays."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np
import pytest

from russet.converters.recipes import recipe_class
from russet.converters.recipes.base import Treatment
from russet.converters.recipes.optimizer import AdamW
from russet.converters.recipes.trainer import Settings

RATE = 1e-2


def by_numpy(params: dict, gradients: list[dict], clip: float, decay: dict[str, float], speed: dict) -> dict:
    """The published update (arXiv 1711.05101, algorithm 2), in float64, gradients clipped to a global norm before."""
    params = {name: array.astype(np.float64) for name, array in params.items()}
    first, second = ({name: np.zeros_like(array) for name, array in params.items()} for _ in range(2))
    for step, given in enumerate(gradients, 1):
        norm = np.sqrt(sum((array.astype(np.float64) ** 2).sum() for array in given.values()))
        for name, array in given.items():
            gradient = array * min(1.0, clip / norm)
            first[name] = 0.9 * first[name] + 0.1 * gradient
            second[name] = 0.95 * second[name] + 0.05 * gradient**2
            change = first[name] / (1 - 0.9**step) / (np.sqrt(second[name] / (1 - 0.95**step)) + 1e-8)
            params[name] -= RATE * speed[name] * (change + decay[name] * params[name])
    return params


@pytest.mark.parametrize("clip", [1e9, 0.5])
def test_steps_are_the_published_ones(clip: float) -> None:
    generator = np.random.default_rng(0)
    shapes = {"layers.0.q": (3, 4), "norm": (4,)}
    start = {name: generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    # Norms far apart, so that clipping changes what the moments remember.
    gradients = [
        {name: (size * generator.normal(size=shape)).astype(np.float32) for name, shape in shapes.items()}
        for size in (0.01, 5.0, 0.3)
    ]
    treatment = {"layers.0.q": Treatment(rate=2.0), "norm": Treatment(decays=False)}
    params = {name: mx.array(array) for name, array in start.items()}
    zeros = {name: mx.zeros_like(array) for name, array in params.items()}
    moments, adam = (zeros, dict(zeros)), AdamW(decay=0.1, clip=clip)
    for step, given in enumerate(gradients, 1):
        arrays = {name: mx.array(array) for name, array in given.items()}
        params, moments, norm = adam.update(
            moments, params, arrays, mx.array(RATE), mx.array(float(step)), treatment.__getitem__
        )
    assert norm.item() == pytest.approx(np.sqrt(sum((array**2).sum() for array in gradients[-1].values())), rel=1e-5)
    expected = by_numpy(start, gradients, clip, {"layers.0.q": 0.1, "norm": 0.0}, {"layers.0.q": 2.0, "norm": 1.0})
    for name, array in expected.items():
        assert np.allclose(np.array(params[name]), array, rtol=1e-5, atol=1e-6), name


def test_the_rate_rises_over_the_warmup_and_falls_straight_to_zero() -> None:
    settings = Settings(tokens=103 * 64, batch=2, length=32, rate=1e-3, warmup=3 / 103)
    rates = [settings.schedule.at(step) for step in range(settings.steps)]
    assert rates[:4] == pytest.approx([1e-3 / 3, 2e-3 / 3, 1e-3, 1e-3])
    assert rates[53] == pytest.approx(0.5e-3)
    assert rates[-1] == pytest.approx(1e-5)


@pytest.mark.parametrize("name", ["control", "relufy", "share_kv", "prune"])
def test_norms_and_biases_do_not_decay(name: str) -> None:
    """qat2 and kv_predictor have rules of their own."""
    recipe = recipe_class(name)()
    assert not any(recipe.treatment(kept).decays for kept in ("norm", "layers.0.attn_norm", "layers.3.q.bias"))
    assert recipe.treatment("layers.0.q").decays


def test_gradients_are_shrunk_to_the_largest_norm_together():
    params = {"a": mx.zeros((2, 2)), "b": mx.zeros((3,))}
    gradients = {"a": mx.full((2, 2), 3.0), "b": mx.full((3,), 4.0)}
    zeros = {name: mx.zeros_like(array) for name, array in params.items()}
    adam = AdamW(first=0.5, decay=0.0, clip=1.0)
    _, moments, norm = adam.update(
        (zeros, zeros), params, gradients, mx.array(1e-3), mx.array(1.0), lambda _: Treatment()
    )
    length = math.sqrt(4 * 9 + 3 * 16)
    assert norm.item() == pytest.approx(length)
    assert moments[0]["a"][0, 0].item() == pytest.approx(0.5 * 3 / length, rel=1e-4)
    assert moments[0]["b"][0].item() == pytest.approx(0.5 * 4 / length, rel=1e-4)
