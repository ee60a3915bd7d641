"""Rows of a text before they are given positions: keys ahead of their norm and rotation, and values.

They are what a document's cache keeps, since the distance between a document's positions depends on which other
documents are retrieved with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from russet.engine.cache import KVCache
from russet.engine.prefill.branches import BranchCache, Rows
from russet.models.config import DecoderConfig
from russet.models.decoder import Decoder, Probe

Shape = tuple[int, int]
"""Key heads and head size: layers that have these in common are stored as one array."""


@dataclass(frozen=True, slots=True)
class DocumentRows:
    """One text's rows, shape -> [2, layers, kv_heads, tokens, head_dim] (keys, then values).

    `log_probability` is the mean of log p(token | what is before it) in nats, the first token left out; nan where there
    is no second one.
    """

    arrays: dict[Shape, mx.array]
    log_probability: float

    @property
    def nbytes(self) -> int:
        """Bytes that the rows take."""
        return sum(array.nbytes for array in self.arrays.values())


class KeysValues(Probe):
    """Collects keys and values as layers make them, piece by piece of a text."""

    def __init__(self) -> None:
        self._pieces: dict[int, list[tuple[mx.array, mx.array]]] = {}

    def keys_values(self, layer: int, keys: mx.array, values: mx.array) -> None:
        self._pieces.setdefault(layer, []).append((keys, values))

    def arrays(self, config: DecoderConfig) -> dict[Shape, mx.array]:
        """All that was seen, as `DocumentRows` has it."""
        joined = {
            layer: [mx.concatenate(list(part), axis=2) for part in zip(*pieces, strict=True)]
            for layer, pieces in self._pieces.items()
        }
        return {
            shape: mx.stack([mx.concatenate([joined[layer][i] for layer in layers], axis=0) for i in (0, 1)])
            for shape, layers in layers_by_shape(config).items()
        }


def layers_by_shape(config: DecoderConfig) -> dict[Shape, list[int]]:
    """The layers that write rows, by the shape of what they write."""
    found: dict[Shape, list[int]] = {}
    for i, layer in enumerate(config.layers):
        if layer.kv_source is None:
            found.setdefault((layer.kv_heads, layer.head_dim), []).append(i)
    return found


def place(
    decoder: Decoder, cache: KVCache, texts: Sequence[DocumentRows], positions: np.ndarray, branches: np.ndarray
) -> Rows:
    """Rows of several texts, one after the other, normalised and rotated for `positions` [all tokens]."""
    target = BranchCache(cache, [], positions, branches)
    for shape, layers in layers_by_shape(decoder.config).items():
        keys, values = mx.concatenate([text.arrays[shape] for text in texts], axis=3)
        for i, layer in enumerate(layers):
            decoder.store(layer, keys[i][None], values[i][None], positions, target)
    return target.written
