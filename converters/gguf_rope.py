"""The rotary embedding's settings out of GGUF metadata, in Hugging Face's `rope_theta` and `rope_scaling`."""

from __future__ import annotations

import math
from typing import Any

from russet.converters.gguf_file import GGUFFile
from russet.engine.errors import UnsupportedModelError

# Llama 3.1's published constants; GGUF files keep only the factors that follow from them.
LOW_FREQ, HIGH_FREQ, ORIGINAL_LENGTH = 1.0, 4.0, 8192


def rope_settings(file: GGUFFile, head_dim: int, factors: str) -> dict[str, Any]:
    """`rope_theta`, and `rope_scaling` where there is one; `factors` names the tensor of Llama 3's divisors.

    Raises UnsupportedModelError for rotation of part of a head, other kinds of scaling, and factors that Llama 3's rule
    does not produce.
    """
    theta = file.number("rope.freq_base", float, 10_000.0)
    rotated = file.number("rope.dimension_count", int, head_dim)
    if rotated != head_dim:
        raise UnsupportedModelError(
            f"{file.path.name} rotates {rotated} of {head_dim} features; only whole heads are supported."
        )
    scaling = _llama3(file, theta, head_dim, factors) if factors in file.tensors else _named_scaling(file)
    return {"rope_theta": theta} | ({"rope_scaling": scaling} if scaling else {})


def _named_scaling(file: GGUFFile) -> dict[str, Any] | None:
    kind = file.get(f"{file.architecture}.rope.scaling.type", "none")
    if kind == "none":
        return None
    if kind not in ("linear", "yarn"):
        raise UnsupportedModelError(
            f"{file.path.name} asks for rope scaling {kind!r}; Russet implements linear, yarn and Llama 3's."
        )
    scaling = {"rope_type": kind, "factor": file.number("rope.scaling.factor", float)}
    if kind == "yarn":
        scaling["original_max_position_embeddings"] = file.number("rope.scaling.original_context_length", int)
    return scaling


def _llama3(file: GGUFFile, theta: float, head_dim: int, name: str) -> dict[str, Any] | None:
    """The factor that reproduces the stored divisors."""
    import numpy as np

    stored = np.array(file.tensors[name].read()).reshape(-1)
    factor = round(float(stored.max()), 3)
    if factor == 1.0:
        return None
    length = file.number("rope.scaling.original_context_length", int, ORIGINAL_LENGTH)
    expected = llama3_divisors(theta, head_dim, factor, length)
    if stored.shape != (head_dim // 2,) or not np.allclose(stored, expected, rtol=1e-4):
        raise UnsupportedModelError(
            f"{file.path.name} stretches rotary frequencies in a way that is not Llama 3's published rule; convert the "
            "original Hugging Face checkpoint."
        )
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": LOW_FREQ,
        "high_freq_factor": HIGH_FREQ,
        "original_max_position_embeddings": length,
    }


def llama3_divisors(theta: float, head_dim: int, factor: float, length: int) -> list[float]:
    """What Llama 3.1 divides each rotary frequency by: 1 for short waves, `factor` for long ones, a ramp between."""
    divisors = []
    for i in range(0, head_dim, 2):
        turns = length / (2 * math.pi * theta ** (i / head_dim))
        ramp = min(1.0, max(0.0, (turns - LOW_FREQ) / (HIGH_FREQ - LOW_FREQ)))
        divisors.append(1 / ((1 - ramp) / factor + ramp))
    return divisors
