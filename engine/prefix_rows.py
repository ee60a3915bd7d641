"""Between the slots of a KV cache and the blocks of a stored prefix."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from russet.engine.cache import KVCache, Slot
from russet.engine.prefix_block import BLOCK, StoredRows


def usable_blocks(cache: KVCache, held: list[set[int]]) -> int:
    """How many leading blocks make a prefix, given the layers that each of them holds.

    A slot with an attention window needs only the rows that the next token still sees.
    """
    whole = {layer for layer, slot in cache.slots.items() if slot.window is None}
    count = next((k for k, layers in enumerate(held) if not whole <= layers), len(held))
    windowed = {layer: slot for layer, slot in cache.slots.items() if slot.window is not None}
    while count and not all(
        layer in held[k] for layer, slot in windowed.items() for k in range(_first_block(slot, count), count)
    ):
        count -= 1
    return count


def _first_block(slot: Slot, count: int) -> int:
    """The first of `count` blocks whose rows the slot needs to go on after them."""
    return 0 if slot.window is None else max(0, count * BLOCK - slot.window + 1) // BLOCK


class CacheFiller:
    """Gathers the rows of blocks in host memory, and puts them into an empty cache once all of them are there.

    MLX arrays cannot lie in a mapped file, so rows are copied from the mapped blocks. The gathered rows leave space
    for more, up to `room`, so that the cache does not have to grow and copy them again.
    """

    def __init__(self, cache: KVCache, count: int, room: int) -> None:
        self._cache = cache
        self._count = count
        self._room = room
        self._first = {layer: _first_block(slot, count) for layer, slot in cache.slots.items()}
        self._buffers: dict[int, list[np.ndarray]] = {}
        self._dtypes: dict[int, list[mx.Dtype]] = {}

    def add(self, k: int, block: dict[int, list[StoredRows]]) -> None:
        """Take over block `k`, by layer the rows of every buffer."""
        for layer, first in self._first.items():
            if k < first:
                continue
            if k == first:
                self._begin(layer, block[layer])
            start = (k - first) * BLOCK
            for buffer, rows in zip(self._buffers[layer], block[layer], strict=True):
                buffer[:, start : start + BLOCK] = rows.data

    def finish(self) -> None:
        """Fill the cache."""
        for layer, slot in self._cache.slots.items():
            first = self._first[layer] * BLOCK
            buffers = self._buffers.pop(layer)
            arrays = zip(buffers, self._dtypes[layer], strict=True)
            slot.rows.load([mx.array(buffer[None]).view(dtype) for buffer, dtype in arrays])
            slot.rows.trim(self._count * BLOCK - first)
            slot.restore(first)
        self._cache.next_position = self._count * BLOCK

    def _begin(self, layer: int, rows: list[StoredRows]) -> None:
        needed = (self._count - self._first[layer]) * BLOCK
        capacity = needed if self._cache.slots[layer].window else max(needed, self._room)
        self._buffers[layer] = [np.zeros((len(r.data), capacity, r.data.shape[2]), np.uint8) for r in rows]
        self._dtypes[layer] = [r.dtype for r in rows]


class HeldRows:
    """The rows of a cache as they are when it holds a prompt, whatever decoding does to it afterwards.

    Only slots with an attention window lose rows then; the others are read when they are needed.
    """

    def __init__(self, cache: KVCache) -> None:
        self._cache = cache
        self._windowed = {
            layer: (slot.first, slot.rows.stored()) for layer, slot in cache.slots.items() if slot.window is not None
        }

    def in_order(self) -> bool:
        """Whether every slot holds one sequence at consecutive positions."""
        return all(
            np.array_equal(slot.positions, np.arange(slot.first, slot.first + slot.rows.length))
            and all(len(buffer) == 1 for buffer in slot.rows.buffers)
            for slot in self._cache.slots.values()
        )

    def layers(self, k: int) -> set[int]:
        """The layers whose slots still hold all rows of block `k`."""
        return {layer for layer in self._cache.slots if self._covers(layer, k)}

    def block(self, k: int) -> dict[str, mx.array]:
        """The rows of block `k`, by the name of their tensor."""
        arrays = {}
        for layer in self.layers(k):
            first, rows = self._rows(layer)
            start = k * BLOCK - first
            arrays.update({f"{layer}.{i}": buffer[:, :, start : start + BLOCK] for i, buffer in enumerate(rows)})
        return arrays

    def _covers(self, layer: int, k: int) -> bool:
        first, rows = self._rows(layer)
        return first <= k * BLOCK and (k + 1) * BLOCK <= first + rows[0].shape[2]

    def _rows(self, layer: int) -> tuple[int, list[mx.array]]:
        slot = self._cache.slots[layer]
        return self._windowed.get(layer) or (slot.first, slot.rows.stored())
