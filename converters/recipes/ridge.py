"""Ridge regression over rows that come in batches: y = W x + b with the least squared error and a small W."""

from __future__ import annotations

import mlx.core as mx
import numpy as np


class Ridge:
    """Sums over rows of inputs [n, in] and of several outputs [n, out] of the same rows."""

    def __init__(self) -> None:
        self._count = 0
        self._square: np.ndarray | None = None
        self._products: dict[str, np.ndarray] = {}

    def add(self, inputs: mx.array, outputs: dict[str, mx.array]) -> None:
        """Take rows in; products are in float32, sums in float64."""
        x = _rows(inputs)
        x = np.concatenate([x, np.ones((len(x), 1), np.float32)], axis=1)
        square = (x.T @ x).astype(np.float64)
        self._square = square if self._square is None else self._square + square
        self._count += len(x)
        for name, rows in outputs.items():
            product = (x.T @ _rows(rows)).astype(np.float64)
            self._products[name] = self._products.get(name, 0) + product

    def solve(self, strength: float) -> dict[str, tuple[mx.array, mx.array]]:
        """Name -> W [out, in] and b [out]. `strength` is the penalty on W, in mean squares of an input."""
        assert self._square is not None
        square, width = self._square.copy(), len(self._square) - 1
        square[range(width), range(width)] += strength * np.trace(square[:width, :width]) / width
        names = list(self._products)
        solved = np.linalg.solve(square, np.concatenate([self._products[name] for name in names], axis=1))
        ends = np.cumsum([self._products[name].shape[1] for name in names])[:-1]
        parts = np.split(solved.astype(np.float32), ends, axis=1)
        return {name: (mx.array(part[:-1].T), mx.array(part[-1])) for name, part in zip(names, parts, strict=True)}


def _rows(array: mx.array) -> np.ndarray:
    return np.array(array.astype(mx.float32)).reshape(-1, array.shape[-1])
