"""Rows on branches: paths that all see a common trunk and not one another, run through the decoder side by side.

Superposition prompting's ForkJoin graph (arXiv 2404.06910): the preamble is the trunk, a document and its copy of the
query are a branch. Rows of many branches go through a layer as one batch of rows; a mask keeps the branches apart.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from russet.engine.cache import WHOLE, KVCache, Mask, Slot
from russet.models.rope import Positions, contiguous

TRUNK = -1
"""The branch of rows that every branch sees."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of every slot that writes, as the slot's storage encodes them, each with a position and a branch.

    `stored` is layer -> buffers [1, kv_heads, rows, width]; `positions` float64 [rows]; `branches` ints [rows].
    """

    stored: dict[int, list[mx.array]]
    positions: np.ndarray
    branches: np.ndarray

    def of(self, branches: Collection[int]) -> Rows:
        """Only the rows of some branches."""
        kept = np.flatnonzero(np.isin(self.branches, list(branches)))
        if len(kept) == len(self.branches):
            return self
        at = mx.array(kept)
        stored = {layer: [mx.take(x, at, axis=2) for x in buffers] for layer, buffers in self.stored.items()}
        return Rows(stored, self.positions[kept], self.branches[kept])

    def arrays(self) -> Iterable[mx.array]:
        return (array for buffers in self.stored.values() for array in buffers)


def join(parts: Sequence[Rows]) -> Rows:
    """Rows of several parts, one after the other."""
    if len(parts) == 1:
        return parts[0]
    stored = {layer: _joined([part.stored[layer] for part in parts]) for layer in parts[0].stored}
    positions = np.concatenate([part.positions for part in parts])
    return Rows(stored, positions, np.concatenate([part.branches for part in parts]))


def fill(cache: KVCache, rows: Rows, room: int) -> None:
    """Make `rows` the whole content of a cache, with capacity for `room` more; they stay as they are encoded."""
    for layer, slot in cache.slots.items():
        slot.rows.load(rows.stored[layer])
        slot.restore(contiguous(rows.positions))
    cache.reserve(len(rows.positions) + room)


class BranchCache(KVCache):
    """What one pass of new rows sees, in the face of a cache: `context`, then the rows themselves.

    A row sees the trunk and its own branch, up to itself. New rows are encoded as `cache` would store them, and
    `written` has them after the pass.
    """

    def __init__(self, cache: KVCache, context: Sequence[Rows], positions: np.ndarray, branches: np.ndarray) -> None:
        self.kv_bits = cache.kv_bits
        self.next_position = 0
        self._source = cache._source
        self._positions, self._branches = positions, branches
        masks = _Masks([*context], positions, branches)
        self.slots = {
            layer: _BranchSlot(slot, [rows.stored[layer] for rows in context], masks)
            for layer, slot in cache.slots.items()
        }

    @property
    def written(self) -> Rows:
        stored = {layer: slot.new for layer, slot in self.slots.items() if isinstance(slot, _BranchSlot)}
        return Rows(stored, self._positions, self._branches)


class _BranchSlot(Slot):
    def __init__(self, slot: Slot, context: list[list[mx.array]], masks: _Masks) -> None:
        super().__init__(slot.rows, slot.window)
        self.new: list[mx.array] = []
        self._context = context
        self._masks = masks
        self._decoded: tuple[mx.array, mx.array] | None = None

    def append(self, keys: mx.array, values: mx.array, positions: Positions) -> None:
        self.new = self.rows.encode(keys, values)

    def read(self, positions: Positions, queries: int) -> tuple[mx.array, mx.array, Mask]:
        if self._decoded is None:
            self._decoded = self.rows.decode(_joined([*self._context, self.new]))
        return *self._decoded, self._masks.of(self.window, queries)


class _Masks:
    """Who sees whom in one pass; layers with equal windows share a mask."""

    def __init__(self, context: Sequence[Rows], positions: np.ndarray, branches: np.ndarray) -> None:
        self._positions = np.concatenate([*(rows.positions for rows in context), positions])
        self._branches = np.concatenate([*(rows.branches for rows in context), branches])
        self._made: dict[tuple[int | None, int], Mask] = {}

    def of(self, window: int | None, queries: int) -> Mask:
        """The mask of the last `queries` rows over all of them."""
        if (window, queries) not in self._made:
            self._made[window, queries] = self._make(window, queries)
        return self._made[window, queries]

    def _make(self, window: int | None, queries: int) -> Mask:
        total = len(self._branches)
        if window is None and len(np.unique(self._branches[self._branches != TRUNK])) <= 1:
            return "causal" if queries > 1 else None
        # On the device, since a pass may have thousands of rows. Order decides and not positions, which float32 would
        # round; rows of one branch are always in order.
        order, branches = mx.arange(total), mx.array(self._branches.astype(np.int32))
        mine = slice(total - queries, total)
        seen = (branches == TRUNK) | (branches == branches[mine, None])
        seen = seen & (order <= order[mine, None])
        if window is not None:
            positions = mx.array(self._positions.astype(np.float32))
            seen = seen & (positions[mine, None] - positions < window - WHOLE)
        return seen


def _joined(parts: Sequence[list[mx.array]]) -> list[mx.array]:
    """Buffers of several parts, joined along rows."""
    return [
        mx.concatenate(list(buffers), axis=2) if len(parts) > 1 else buffers[0] for buffers in zip(*parts, strict=True)
    ]
