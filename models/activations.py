"""Gated activations of the FFN: act(gate) * up."""

from __future__ import annotations

import math
from collections.abc import Callable

import mlx.core as mx

from russet.models.config import Activation

Gate = Callable[[mx.array, mx.array], mx.array]


def gated(name: Activation, compiled: bool, shift: float = 0.0) -> Gate:
    """The gate for an activation of x - `shift`; `compiled` fuses it into one launch.

    A CPU runs it as it is written: compiling there calls a C++ compiler, which may be missing and takes a second.
    """
    act = _ACTIVATIONS[name]

    def gate(x: mx.array, up: mx.array) -> mx.array:
        return act(x - shift if shift else x) * up

    return mx.compile(gate, shapeless=True) if compiled else gate


def _silu(x: mx.array) -> mx.array:
    return x * mx.sigmoid(x)


def _gelu(x: mx.array) -> mx.array:
    return x * (1 + mx.erf(x / math.sqrt(2))) / 2


def _gelu_tanh(x: mx.array) -> mx.array:
    return 0.5 * x * (1 + mx.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


def _relu(x: mx.array) -> mx.array:
    return mx.maximum(x, 0)


_ACTIVATIONS: dict[Activation, Callable[[mx.array], mx.array]] = {
    "silu": _silu,
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "relu": _relu,
}
