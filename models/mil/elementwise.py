"""MIL operations on single numbers and along axes. Half precision is widened; who stores a result rounds it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Operation = Callable[..., Any]


def wide(x: Any) -> Any:
    """float16 as float32; anything else as it is."""
    return x.astype(np.float32) if getattr(x, "dtype", None) == np.float16 else x


def _unary(function: Operation) -> Operation:
    return lambda x: function(wide(x))


def _binary(function: Operation) -> Operation:
    return lambda x, y: function(wide(x), wide(y))


def _reduction(function: Operation) -> Operation:
    def reduce(x: np.ndarray, axes: Any = None, keep_dims: Any = False) -> Any:
        return function(wide(x), axis=None if axes is None else _ints(axes), keepdims=bool(keep_dims))

    return reduce


def _ints(values: Any) -> tuple[int, ...]:
    return tuple(int(value) for value in np.atleast_1d(values))


def _divide(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    quotient = wide(x) / wide(y)
    return np.trunc(quotient) if x.dtype.kind in "iu" else quotient


def _sigmoid(x: np.ndarray) -> np.ndarray:
    """Without overflow for numbers far below zero."""
    small = np.exp(-np.abs(wide(x)))
    return np.where(x >= 0, 1 / (1 + small), small / (1 + small))


def _erf(x: np.ndarray) -> np.ndarray:
    from math import erf

    return np.vectorize(erf, otypes=[np.float32])(wide(x))


def gelu(x: np.ndarray, mode: str = "EXACT") -> np.ndarray:
    """Hendrycks and Gimpel, arXiv 1606.08415, with the error function or its approximation by tanh."""
    x = wide(x)
    if mode == "EXACT":
        return x * (1 + _erf(x / np.float32(np.sqrt(2)))) / 2
    if mode == "TANH_APPROXIMATION":
        return 0.5 * x * (1 + np.tanh(np.float32(np.sqrt(2 / np.pi)) * (x + np.float32(0.044715) * x * x * x)))
    return x * _sigmoid(np.float32(1.702) * x)


def softmax(x: np.ndarray, axis: Any = -1) -> np.ndarray:
    x = wide(x)
    grown = np.exp(x - x.max(int(axis), keepdims=True))
    return grown / grown.sum(int(axis), keepdims=True)


def layer_norm(
    x: np.ndarray, axes: Any, gamma: np.ndarray | None = None, beta: np.ndarray | None = None, epsilon: Any = 1e-5
) -> np.ndarray:
    x, along = wide(x), _ints(axes)
    centred = x - x.mean(along, keepdims=True)
    y = centred / np.sqrt((centred**2).mean(along, keepdims=True) + np.float32(epsilon))
    y = y if gamma is None else y * wide(gamma)
    return y if beta is None else y + wide(beta)


ELEMENTWISE: dict[str, Operation] = {
    "identity": lambda x: x,
    # Rounding is done by the format that the output declares.
    "cast": lambda x, dtype: x,
    "abs": _unary(np.abs),
    "clip": lambda x, alpha, beta: np.clip(wide(x), wide(alpha), wide(beta)),
    "gelu": gelu,
    "log": lambda x, epsilon=1e-45: np.log(wide(x) + np.float32(epsilon)),
    "logical_not": _unary(np.logical_not),
    "relu": lambda x: np.maximum(x, 0),
    "round": _unary(np.round),
    "sigmoid": _sigmoid,
    "silu": lambda x: wide(x) * _sigmoid(x),
    "softmax": softmax,
    "sqrt": _unary(np.sqrt),
    "layer_norm": layer_norm,
    "real_div": _divide,
    "add": _binary(np.add),
    "equal": _binary(np.equal),
    "greater": _binary(np.greater),
    "less": _binary(np.less),
    "less_equal": _binary(np.less_equal),
    "logical_and": _binary(np.logical_and),
    "maximum": _binary(np.maximum),
    "mul": _binary(np.multiply),
    "sub": _binary(np.subtract),
    "reduce_max": _reduction(np.max),
    "reduce_mean": _reduction(np.mean),
    "reduce_sum": _reduction(np.sum),
}
