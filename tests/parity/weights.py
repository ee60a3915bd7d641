"""Random weights for the tiny models: from numpy's generator, so that they do not depend on a library's version."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

GAIN = 1.3
"""Above 1, so that attention is far from uniform and each option moves the logits."""


def random_weights(shapes: Mapping[str, tuple[int, ...]], seed: int, norm_centre: float = 1.0) -> dict[str, np.ndarray]:
    """float32 tensors for named shapes; all values are bfloat16 numbers, so a cast to 16 bits and back changes none.

    Norm weights lie around `norm_centre` (0 for Gemma, whose norms add 1), matrices keep their input's magnitude.
    """
    rng = np.random.default_rng(seed)
    return {name: to_bfloat16(_draw(rng, name, shapes[name], norm_centre)) for name in sorted(shapes)}


def random_tokens(vocab_size: int, length: int, seed: int) -> np.ndarray:
    """Token ids, int32; the first three are left out, since libraries treat padding and the like specially."""
    return np.random.default_rng(seed + 1000).integers(3, vocab_size, length, dtype=np.int32)


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """float32 values with the lower 16 bits rounded away."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)


def _draw(rng: np.random.Generator, name: str, shape: tuple[int, ...], norm_centre: float) -> np.ndarray:
    values = rng.standard_normal(shape)
    if name.endswith(".bias"):
        return 0.3 * values
    if len(shape) == 1:
        return norm_centre + 0.3 * values
    if "embed" in name:
        return 0.5 * values
    return values * GAIN / np.sqrt(shape[-1])
