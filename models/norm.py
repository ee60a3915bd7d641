"""RMS norm over the last axis (Zhang and Sennrich, arXiv 1910.07467)."""

from __future__ import annotations

import mlx.core as mx


class RMSNorm:
    """x / rms(x) * weight; `weight` has a family's offset in it already."""

    __slots__ = ("eps", "weight")

    def __init__(self, weight: mx.array, eps: float) -> None:
        self.weight = weight
        self.eps = eps

    def __call__(self, x: mx.array) -> mx.array:
        return mx.fast.rms_norm(x, self.weight, self.eps)


class ReLUNorm:
    """An RMS norm whose rows are cut at zero: what follows reads about half of them."""

    __slots__ = ("norm",)

    def __init__(self, norm: RMSNorm) -> None:
        self.norm = norm

    def __call__(self, x: mx.array) -> mx.array:
        return mx.maximum(self.norm(x), 0)
