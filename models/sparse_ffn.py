"""FFNs that leave inactive neurons out of the up and down projections, for steps of a few rows.

On a GPU two kernels do it (kernels/sparse_ffn.py). On a CPU, one row gathers the rows of its active neurons where
weights are larger than caches and few neurons are active. With ReLU and no threshold the result is the dense FFN's.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import Protocol

import mlx.core as mx
import numpy as np

from russet.engine.device import on_gpu
from russet.engine.errors import UnsupportedModelError
from russet.kernels.backend import backend
from russet.kernels.base import mode
from russet.kernels.packed import GROUPS, none
from russet.kernels.sparse_ffn import DOWN, MAX_ROWS, gate_up, gate_up_vector, settings
from russet.models.activations import gated
from russet.models.config import Activation
from russet.models.linear import Affine, Branches, Dense, Linear, Quantized, Weight, linear
from russet.models.norm import RMSNorm

_log = logging.getLogger("russet")

# Two cores with OpenBLAS and 4096 x 11008: 1.6 times the dense FFN's speed at 80 % zeros, 2 at 90 %, 0.8 at 50 %.
# With 576 x 1536, which caches hold, gathering never wins.
_GATHER_WEIGHTS = 1 << 23
_GATHER_SHARE = 0.25
_GATHER_ROWS = 32


class StepFFN(Protocol):
    """h + down(act(gate(norm(h))) up(norm(h))) for rows h [..., hidden] of a step."""

    def takes(self, rows: int) -> bool:
        """Whether this many rows are better off here than with the dense FFN."""
        ...

    def __call__(self, h: mx.array) -> mx.array: ...


class NeuronMajor:
    """A down projection whose weights are kept [ffn, hidden]: y = x W."""

    __slots__ = ("weight",)

    def __init__(self, weight: Weight) -> None:
        self.weight = weight

    def __call__(self, x: mx.array) -> mx.array:
        w = self.weight
        if isinstance(w, Affine):
            return mx.quantized_matmul(x, w.weight, w.scales, w.biases, False, w.group_size, w.bits)
        return x @ w

    def add_to(self, residual: mx.array, x: mx.array) -> mx.array:
        return residual + self(x)

    @property
    def arrays(self) -> list[mx.array]:
        w = self.weight
        return [w.weight, w.scales, w.biases] if isinstance(w, Affine) else [w]


class KernelFFN:
    """The FFN by Russet's kernels, for up to 16 rows or one vector [hidden] in float32."""

    def __init__(
        self, norm: RMSNorm, gate_up_rows: Linear, down: NeuronMajor, activation: Activation, threshold: float
    ) -> None:
        self._norm = norm
        self._gate_up, self._gate_up_vector = gate_up(activation), gate_up_vector(activation)
        self._dtype = norm.weight.dtype
        self._rows = _operands(gate_up_rows.affine if isinstance(gate_up_rows, Quantized) else _dense(gate_up_rows))
        self._down = _operands(down.weight)
        self._settings = settings(norm.eps, threshold)

    @property
    def disabled(self) -> bool:
        return bool(self._gate_up.disabled or self._gate_up_vector.disabled or DOWN.disabled)

    def takes(self, rows: int) -> bool:
        return rows <= MAX_ROWS and not self.disabled

    def __call__(self, h: mx.array) -> mx.array:
        rows = h.size // h.shape[-1]
        flat = h if h.ndim <= 2 else h.reshape(rows, -1)
        # The norm of one row costs less inside the product, and that of many rows outside.
        x, gain = (flat, self._norm.weight) if rows == 1 else (self._norm(flat), none(self._dtype))
        kernel = self._gate_up_vector if x.ndim == 1 else self._gate_up
        (a,) = kernel(x, gain, *self._rows, self._settings)
        (y,) = DOWN(a, flat, *self._down)
        return y if h.ndim <= 2 else y.reshape(h.shape)


class GatheredFFN:
    """The FFN on a CPU in float32: inactive neurons of one row are not read where that is faster."""

    def __init__(
        self, norm: RMSNorm, gate_up_maps: Branches, down: NeuronMajor, activation: Activation, threshold: float
    ) -> None:
        self._norm = norm
        self._gate, self._up = gate_up_maps.maps
        self._down = down
        self._act = gated(activation, compiled=False)
        self._one = mx.ones((1,))
        self._threshold = threshold
        up, rows = _dense(self._up), down.weight
        assert isinstance(rows, mx.array)
        self._gathers = rows.size >= _GATHER_WEIGHTS
        if self._gathers:
            mx.eval(up, rows)
            self._up_rows, self._down_rows = np.array(up, copy=False), np.array(rows, copy=False)
            self._buffer = np.empty((_GATHER_ROWS, rows.shape[1]), np.float32)

    def takes(self, rows: int) -> bool:
        return rows <= MAX_ROWS if self._threshold else rows == 1 and self._gathers

    def __call__(self, h: mx.array) -> mx.array:
        x = self._norm(h)
        act = self._act(self._gate(x), self._one)
        if self._threshold:
            act = mx.where(mx.abs(act) <= self._threshold, 0.0, act)
        if self._gathers and act.size == act.shape[-1]:
            values = np.array(act).reshape(-1)
            active = np.flatnonzero(values)
            if len(active) < _GATHER_SHARE * len(values):
                return h + mx.array(self._gathered(np.array(x).reshape(-1), values, active)).reshape(h.shape)
        return self._down.add_to(h, act * self._up(x))

    def _gathered(self, x: np.ndarray, values: np.ndarray, active: np.ndarray) -> np.ndarray:
        y = np.zeros_like(x)
        # Rows go through a buffer that stays in a cache: a gather of all of them is written to memory and read again.
        for start in range(0, len(active), _GATHER_ROWS):
            neurons = active[start : start + _GATHER_ROWS]
            buffer = self._buffer[: len(neurons)]
            np.take(self._up_rows, neurons, 0, out=buffer, mode="clip")
            share = (buffer @ x) * values[neurons]
            np.take(self._down_rows, neurons, 0, out=buffer, mode="clip")
            y += share @ buffer
        return y


def down_projection(weight: Weight, bias: mx.array | None, stored_by_neuron: bool, sparse: bool) -> Linear:
    """The down projection for a weight [hidden, ffn], or [ffn, hidden] as `stored_by_neuron` says.

    A dense one is turned to neuron-major where FFNs are `sparse`; a packed one cannot be without rounding it again,
    so it stays as it is, and its FFN dense. Raises UnsupportedModelError for a bias beside rows by neuron.
    """
    if stored_by_neuron and bias is not None:
        raise UnsupportedModelError(
            "config.json has ffn_down neuron_major and a bias; Russet runs one without the other."
        )
    if stored_by_neuron and isinstance(weight, Affine) and weight.adapter is not None:
        raise UnsupportedModelError(
            "config.json has ffn_down neuron_major, and the weights an adapter; there is no such."
        )
    if stored_by_neuron:
        return NeuronMajor(weight)
    if sparse and bias is None and isinstance(weight, mx.array):
        return NeuronMajor(mx.contiguous(weight.T))
    if sparse and on_gpu():
        _say_dense()
    return linear(weight, bias)


@cache
def _say_dense() -> None:
    _log.warning(
        "the FFNs stay dense, though neurons of them are zero: their packed down projections are not stored by neuron; "
        "`russet sparsify` writes a folder in which they are"
    )


def step_ffn(
    norm: object, gate_up_maps: Branches, down: Linear, activation: Activation, threshold: float
) -> StepFFN | None:
    """The FFN of steps of a few rows where it can leave neurons out, else None."""
    if activation != "relu" and not threshold:
        return None
    if not isinstance(down, NeuronMajor) or not isinstance(norm, RMSNorm):
        return None
    maps = gate_up_maps.maps
    if not on_gpu() and len(maps) == 2 and all(_float32(part) for part in (*maps, down)):
        return GatheredFFN(norm, gate_up_maps, down, activation, threshold)
    if mode() == "off" or (mode() == "on" and backend() is None) or len(maps) != 1:
        return None
    if not (_fits(maps[0]) and _fits(down)):
        return None
    return KernelFFN(norm, maps[0], down, activation, threshold)


def _float32(part: Linear) -> bool:
    weight = part.weight if isinstance(part, Dense | NeuronMajor) else None
    return isinstance(weight, mx.array) and weight.dtype == mx.float32


def _fits(part: Linear) -> bool:
    """Whether the kernels take the rows of a linear map."""
    if isinstance(part, Quantized):
        weight: Weight | None = part.affine
    else:
        weight = part.weight if isinstance(part, Dense | NeuronMajor) else None
    if isinstance(weight, Affine):
        width = weight.weight.shape[1] * 32 // weight.bits
        return weight.bits in (2, 4, 8) and weight.group_size in GROUPS and width % 64 == 0
    return weight is not None and weight.shape[1] % 64 == 0


def _dense(part: Linear) -> mx.array:
    assert isinstance(part, Dense)
    return part.weight


def _operands(weight: Weight) -> tuple[mx.array, mx.array, mx.array]:
    """Rows, scales and offsets as kernels/packed.py has them."""
    if isinstance(weight, Affine):
        return weight.weight, weight.scales, weight.biases
    return weight, none(weight.dtype), none(weight.dtype)
