"""How far the host runs ahead of a GPU in a long prompt.

Expanded weights (models/expansion.py) take memory from when their layer is handed to the GPU until it ran there. MLX
hands over some hundred operations before it waits, which is most of a model: with Llama-2-7B's shape at 4 bits, 4096
rows peaked at 22.0 GB on an H200 where mlx-lm's, which expands nothing, took 10.0.
"""

from __future__ import annotations

import mlx.core as mx

from russet.engine.device import on_gpu
from russet.models.config import DecoderConfig
from russet.models.expansion import FEWEST_ROWS

AHEAD_BYTES = 1 << 30
"""Expanded weights of the layers that are handed over at once; as many wait behind them."""


class Pace:
    """Counts the layers of one pass; two groups of them are under way at most, so that the GPU always has work."""

    def __init__(self, layers_at_once: int | None) -> None:
        self._at_once = layers_at_once
        self._count = 0
        self._before: mx.array | None = None

    def layer(self, h: mx.array) -> None:
        """To be told of the rows after each layer."""
        self._count += 1
        if self._at_once is None or self._count % self._at_once:
            return
        mx.async_eval(h)
        if self._before is not None:
            mx.eval(self._before)
        self._before = h


def pace(config: DecoderConfig, packed: bool, rows: int, dtype: mx.Dtype) -> Pace:
    """The pace of a pass of `rows` rows: free where nothing is expanded."""
    if not packed or rows < FEWEST_ROWS or not on_gpu():
        return Pace(None)
    return Pace(max(1, AHEAD_BYTES // _layer_bytes(config, dtype)))


def _layer_bytes(config: DecoderConfig, dtype: mx.Dtype) -> int:
    """The largest layer's weights in the compute type."""
    return dtype.size * max(
        config.hidden_dim * (2 * (spec.heads + spec.kv_heads) * spec.head_dim + 3 * spec.ffn_dim)
        for spec in config.layers
    )
