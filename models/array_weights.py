"""A decoder's tensors out of arrays in memory, by role; biases are `<role>.bias`."""

from __future__ import annotations

from collections.abc import Mapping

import mlx.core as mx

from russet.models.linear import Weight


class ArrayWeights:
    """A `WeightSource` (models/weights.py) over arrays by role, which are cast and nothing else."""

    def __init__(self, arrays: Mapping[str, mx.array]) -> None:
        self._arrays = arrays

    def has(self, role: str) -> bool:
        return role in self._arrays

    def weight(self, role: str, dtype: mx.Dtype, expand: bool) -> Weight:
        return self._arrays[role].astype(dtype)

    def dense(self, role: str, dtype: mx.Dtype) -> mx.array:
        return self._arrays[role].astype(dtype)

    def bias(self, role: str) -> mx.array:
        return self._arrays[f"{role}.bias"]

    def bare(self, role: str) -> mx.array:
        return self._arrays[role]

    def taken(self) -> list[mx.array]:
        return []
