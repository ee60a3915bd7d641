"""Linear maps and embeddings, dense or in MLX's affine quantised layout, behind one face.

Weights are [out, in] as checkpoints have them. Dense ones keep their transposed view, made once, since building it
anew at every call costs host time that small models feel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

import mlx.core as mx
import numpy as np

from russet.kernels.q2_matvec import MAX_ROWS, q2_matvec, q2_serves
from russet.models.expansion import FEWEST_ROWS, pays


@dataclass(frozen=True, slots=True)
class Affine:
    """One tensor in MLX's affine layout: w = scale * q + bias over groups of `group_size` along the input.

    `adapter` is a correction of low rank, A [rank, in] and B [out, rank] with w + B A (arXiv 2106.09685).
    """

    weight: mx.array
    scales: mx.array
    biases: mx.array
    group_size: int
    bits: int
    adapter: tuple[mx.array, mx.array] | None = None

    def expand(self, dtype: mx.Dtype) -> mx.array:
        """The dense [out, in] matrix."""
        dense = mx.dequantize(self.weight, self.scales, self.biases, self.group_size, self.bits)
        if self.adapter is not None:
            dense = dense + self.adapter[1] @ self.adapter[0]
        return dense.astype(dtype)

    def multiply(self, x: mx.array) -> mx.array:
        """x times its transpose, without expanding it."""
        y = mx.quantized_matmul(x, self.weight, self.scales, self.biases, True, self.group_size, self.bits)
        return y if self.adapter is None else y + (x @ self.adapter[0].T) @ self.adapter[1].T

    def balanced(self) -> bool:
        """Whether these are 2-bit levels (q - 1.5) scale, to the bit, so that offsets need not be read."""
        return self.bits == 2 and self.adapter is None and bool(mx.all(self.biases == -1.5 * self.scales))

    def rows(self, index: mx.array) -> Affine:
        return Affine(self.weight[index], self.scales[index], self.biases[index], self.group_size, self.bits)

    def first(self, count: int) -> Affine:
        return Affine(self.weight[:count], self.scales[:count], self.biases[:count], self.group_size, self.bits)

    @property
    def arrays(self) -> list[mx.array]:
        return [self.weight, self.scales, self.biases, *(self.adapter or ())]


Weight = mx.array | Affine


class Linear(Protocol):
    """y = x W^T + b over the last axis."""

    def __call__(self, x: mx.array) -> mx.array: ...

    def add_to(self, residual: mx.array, x: mx.array) -> mx.array:
        """residual + y, in one operation where there is one."""
        ...

    @property
    def arrays(self) -> list[mx.array]:
        """Its parameters, for evaluation."""
        ...


class Dense:
    """A 16- or 32-bit linear map."""

    __slots__ = ("bias", "transposed", "weight")

    def __init__(self, weight: mx.array, bias: mx.array | None = None) -> None:
        self.weight = weight
        self.transposed = weight.T
        self.bias = bias

    def __call__(self, x: mx.array) -> mx.array:
        if self.bias is None:
            return x @ self.transposed
        return mx.addmm(self.bias, x, self.transposed)

    def add_to(self, residual: mx.array, x: mx.array) -> mx.array:
        # On CUDA, and for single rows, MLX's addmm takes twice the time of its matrix-vector product and an addition.
        if self.bias is None and mx.metal.is_available():
            return mx.addmm(residual, x, self.transposed)
        return residual + self(x)

    def adopt(self, weight: mx.array) -> None:
        """Go on with the same weight, kept in other memory."""
        self.weight, self.transposed = weight, weight.T

    @property
    def arrays(self) -> list[mx.array]:
        return [self.transposed] if self.bias is None else [self.transposed, self.bias]


class Quantized:
    """A linear map whose weights stay packed.

    Many rows go through a dense matrix that lives for one product, a few through a kernel where weights are balanced.
    """

    __slots__ = ("_balanced", "affine", "bias")

    def __init__(self, affine: Affine, bias: mx.array | None = None) -> None:
        self.affine = affine
        self.bias = bias
        self._balanced: bool | None = None

    def __call__(self, x: mx.array) -> mx.array:
        if (dense := self._dense(x)) is not None:
            return dense(x)
        y = q2_matvec(x, self.affine.weight, self.affine.scales) if self._few(x) else self.affine.multiply(x)
        return y if self.bias is None else y + self.bias

    def _few(self, x: mx.array) -> bool:
        """Whether the kernel for a few rows of balanced 2-bit weights serves. A lone row is the fused step's."""
        if self.affine.bits != 2 or not 1 < x.size // x.shape[-1] <= MAX_ROWS or not q2_serves():
            return False
        if self._balanced is None:
            self._balanced = self.affine.balanced()
        return self._balanced

    def add_to(self, residual: mx.array, x: mx.array) -> mx.array:
        if (dense := self._dense(x)) is not None:
            return dense.add_to(residual, x)
        return residual + self(x)

    def _dense(self, x: mx.array) -> Dense | None:
        """Its expanded form, where x has so many rows that expanding pays."""
        rows = x.size // x.shape[-1]
        if rows < FEWEST_ROWS or not pays(self.affine, rows, x.dtype):
            return None
        return Dense(self.affine.expand(x.dtype), self.bias)

    def adopt(self, weight: Affine) -> None:
        """Go on with the same weight, kept in other memory."""
        self.affine = weight

    @property
    def arrays(self) -> list[mx.array]:
        return self.affine.arrays if self.bias is None else [*self.affine.arrays, self.bias]


def linear(weight: Weight, bias: mx.array | None = None) -> Linear:
    """The linear map for a weight of either kind."""
    return Quantized(weight, bias) if isinstance(weight, Affine) else Dense(weight, bias)


class Branches:
    """Several linear maps of one input (query, key and value; gate and up), as one product where that is possible.

    One product saves launches, which bound small models on a GPU. `ends` are the columns where its outputs are cut.
    """

    __slots__ = ("_ends", "maps")

    def __init__(self, maps: list[Linear], ends: list[int] | None = None) -> None:
        self.maps = maps
        self._ends = ends

    def __call__(self, x: mx.array) -> list[mx.array]:
        if not self._ends:
            return [branch(x) for branch in self.maps]
        return list(mx.split(self.maps[0](x), self._ends, axis=-1))

    @property
    def arrays(self) -> list[mx.array]:
        return [array for branch in self.maps for array in branch.arrays]


def branches(weights: Sequence[Weight], biases: Sequence[mx.array | None], join: bool) -> Branches:
    """Linear maps of one input; `join` stacks their rows where their layouts agree and none has an adapter."""
    if not (join and _alike(weights)):
        return Branches([linear(w, b) for w, b in zip(weights, biases, strict=True)])
    bias = None if biases[0] is None else mx.concatenate([b for b in biases if b is not None])
    rows = [(w.weight if isinstance(w, Affine) else w).shape[0] for w in weights]
    return Branches([linear(_stack(weights), bias)], list(accumulate(rows[:-1])))


def _alike(weights: Sequence[Weight]) -> bool:
    kinds = {(w.group_size, w.bits) if isinstance(w, Affine) else None for w in weights}
    return len(kinds) == 1 and not any(isinstance(w, Affine) and w.adapter for w in weights)


def _stack(weights: Sequence[Weight]) -> Weight:
    affine = [w for w in weights if isinstance(w, Affine)]
    if not affine:
        return mx.concatenate([w for w in weights if not isinstance(w, Affine)])
    return Affine(
        mx.concatenate([w.weight for w in affine]),
        mx.concatenate([w.scales for w in affine]),
        mx.concatenate([w.biases for w in affine]),
        affine[0].group_size,
        affine[0].bits,
    )


class Embedding:
    """Token ids -> rows of a [vocab, hidden] table, times `scale`; `head()` is the same table as a linear map."""

    def __init__(self, weight: Weight, scale: float, dtype: mx.Dtype) -> None:
        self.weight = weight
        self._dtype = dtype
        self._scale = None if scale == 1.0 else mx.array(scale, dtype=dtype)
        self.scale = 1.0 if self._scale is None else float(np.array(self._scale.astype(mx.float32)))

    def __call__(self, tokens: mx.array) -> mx.array:
        rows = self.weight.rows(tokens).expand(self._dtype) if isinstance(self.weight, Affine) else self.weight[tokens]
        return rows if self._scale is None else rows * self._scale

    def head(self) -> Linear:
        return linear(self.weight)
