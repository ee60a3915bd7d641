"""The KV cache: rows of keys and values with their positions, one slot a layer that owns its rows.

A layer with `kv_source` reads an earlier layer's slot, so sharing saves real memory. Rows carry positions: a strategy
may leave gaps or add rows out of order, and a slot's length is not the next position. Layers with an attention window
drop rows that no later query can see.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from russet.engine.rows import RING, Int8Rows, PlainRows, Rows
from russet.models.config import DecoderConfig, LayerSpec
from russet.models.rope import OnDevice, Positions

Mask = mx.array | str | None
"""What `mx.fast.scaled_dot_product_attention` takes: None, "causal", or booleans [queries, rows]."""

WINDOW_SLACK = 512
"""Rows a windowed slot keeps beyond its window before it drops old ones, so that dropping is rare."""


WHOLE = 1e-6
"""Fractional positions a whole window apart may differ by less after rounding; they are out of reach all the same."""


@dataclass(frozen=True, slots=True)
class RingView:
    """Rows as a fused decode step reads them: buffers [1, kv_heads, capacity, dim], and the ring.

    `state` counts the rows in the buffers and in the ring, then says which is the first to look at in either.
    """

    keys: mx.array
    values: mx.array
    ring: mx.array
    state: tuple[int, int, int, int]


class Slot:
    """The rows of one layer.

    While rows are contiguous only `first` is kept and nothing is computed per row; the first append that breaks the
    run turns positions into an array (`ragged`).
    """

    def __init__(self, rows: Rows, window: int | None) -> None:
        self.rows = rows
        self.window = window
        self.first = 0
        self._reserved = 0
        self._ragged: np.ndarray | OnDevice | None = None
        # Positions that follow `_ragged`: to lengthen an array at every token would copy it every time.
        self._later: list[float] = []

    @property
    def positions(self) -> np.ndarray:
        """The position of every row, float64."""
        if self._ragged is None:
            return np.arange(self.first, self.first + self.rows.length, dtype=np.float64)
        ragged = as_array(self._ragged, self.rows.length)
        if self._later:
            ragged = np.concatenate([ragged, self._later])
        self._ragged, self._later = ragged, []
        return ragged

    @property
    def chosen(self) -> OnDevice | None:
        """The positions of all rows where only the device knows them yet."""
        return self._ragged if isinstance(self._ragged, OnDevice) and not self._later else None

    def append(self, keys: mx.array, values: mx.array, positions: Positions) -> None:
        """Add rows [batch, kv_heads, n, head_dim]."""
        if self.rows.length == 0 and isinstance(positions, int):
            self.first, self._ragged, self._later = positions, None, []
        contiguous = isinstance(positions, int) and positions == self.first + self.rows.length
        if isinstance(positions, OnDevice) and not self.rows.length and self.window is None:
            self._ragged, self._later = positions, []
        elif self._ragged is not None or not contiguous:
            self._ragged = np.concatenate([self.positions, as_array(positions, keys.shape[2])])
        elif self.window is not None:
            self._drop_unseen(self.first + self.rows.length)
        room = 0 if self.rows.length else self._reserved - _end(positions, keys.shape[2])
        self.rows.append(keys, values, max(0, room))

    def reserve(self, rows: int) -> None:
        """Make room for rows at all positions before `rows`; an empty slot makes it when its first ones come.

        So a slot of which a strategy leaves rows out takes no more than it will hold.
        """
        if self.rows.length:
            self.rows.reserve(rows)
        else:
            self._reserved = rows

    def open_ring(self, position: int) -> RingView | None:
        """What a kernel reads to attend from one new row at `position`; None where it needs a mask."""
        rows = self.rows
        if not rows.takes_ring or not rows.length or (self.window is not None and self._ragged is not None):
            return None
        if self.window is not None:
            self._drop_unseen(position)
        return RingView(*rows.open_ring(), self.ring_state(position))

    def ring_state(self, position: int, later: int = 0) -> tuple[int, int, int, int]:
        """What `RingView.state` is for a query at `position`, or will be for one `later` rows and positions on."""
        rows = self.rows
        kept, in_ring = rows.length - rows.in_ring, rows.in_ring + later
        if self.window is None:
            return kept, in_ring, 0, 0
        unseen = max(0, position + later - self.window + 1 - self.first)
        return kept, in_ring, min(unseen, kept), max(0, unseen - kept)

    def close_ring(self, ring: mx.array, position: int) -> None:
        """Take the ring back with the row of `position` in it."""
        if self._ragged is None and position != self.first + self.rows.length:
            self._ragged = self.positions
        if self._ragged is not None:
            self._later.append(position)
        self.rows.close_ring(ring)

    def read(self, positions: Positions, queries: int) -> tuple[mx.array, mx.array, Mask]:
        """Keys, values and mask for `queries` queries; each sees the rows at its own position and before."""
        if (chosen := self.chosen) is not None:
            if positions is chosen:
                return *self.rows.read(0), "causal" if queries > 1 else None
            if queries == 1 and isinstance(positions, int) and positions >= chosen.end - 1:
                return *self.rows.read(0), None
        end = self.first + self.rows.length
        if self._ragged is not None or not isinstance(positions, int) or positions + queries != end:
            keys, values = self.rows.read(0)
            wanted, stored = as_array(positions, queries), self.positions
            if queries > 1 and self._follows(wanted, stored):
                return keys, values, "causal"
            return keys, values, self._mask(wanted, stored)
        skip = 0 if self.window is None else max(0, positions - self.window + 1 - self.first)
        keys, values = self.rows.read(skip)
        if self.window is not None and queries > 1 and self.rows.length - skip > self.window:
            return keys, values, self._mask(as_array(positions, queries), self.positions[skip:])
        return keys, values, "causal" if queries > 1 else None

    def kept_at(self, length: int) -> int | None:
        """How many rows lie before position `length`, or None where the slot cannot go back to it by cutting."""
        if self._ragged is not None:
            before = self.positions < length
            kept = int(before.sum())
            return kept if before[:kept].all() else None
        needed = 0 if self.window is None else max(0, length - self.window + 1)
        kept = length - self.first
        return kept if self.first <= needed and kept <= self.rows.length else None

    def trim(self, rows: int) -> None:
        """Forget all but the first `rows` rows."""
        self.rows.trim(rows)
        if self._ragged is not None:
            self._ragged = self.positions[:rows]

    def restore(self, positions: Positions) -> None:
        """State the positions of rows that were loaded: of row 0 where they are contiguous, otherwise of each."""
        self.first, self._ragged = (positions, None) if isinstance(positions, int) else (0, positions)
        self._later = []

    def _mask(self, queries: np.ndarray, rows: np.ndarray) -> Mask:
        seen = rows[None, :] <= queries[:, None]
        if self.window is not None:
            seen &= queries[:, None] - rows[None, :] < self.window - WHOLE
        return None if seen.all() else mx.array(seen)  # type: ignore[arg-type]

    def _follows(self, queries: np.ndarray, rows: np.ndarray) -> bool:
        """Whether the queries' own rows end the slot, all in ascending order and none out of the window's reach."""
        near = self.window is None or queries[-1] - rows[0] < self.window
        return near and np.array_equal(rows[-len(queries) :], queries) and bool((np.diff(rows) > 0).all())

    def _drop_unseen(self, next_position: int) -> None:
        assert self.window is not None
        unseen = next_position - self.window + 1 - self.first
        if unseen >= WINDOW_SLACK:
            self.rows.drop(unseen)
            self.first += unseen


class KVCache:
    """All slots of one sequence, or of `batch` sequences of equal length."""

    def __init__(self, config: DecoderConfig, dtype: mx.Dtype, kv_bits: int = 16, batch: int = 1) -> None:
        self.kv_bits = kv_bits
        self.next_position = 0
        self.slots = {
            i: Slot(_rows(config, layer, batch, dtype, kv_bits), layer.window)
            for i, layer in enumerate(config.layers)
            if layer.kv_source is None
        }
        self._source = [i if layer.kv_source is None else layer.kv_source for i, layer in enumerate(config.layers)]

    def slot(self, layer: int) -> Slot:
        """The slot that `layer` reads: its own, or the one it shares."""
        return self.slots[self._source[layer]]

    def reserve(self, rows: int) -> None:
        """Make room for `rows` rows in total, so that growing does not copy later."""
        rows += RING
        for slot in self.slots.values():
            slot.reserve(rows if slot.window is None else min(rows, slot.window + WINDOW_SLACK))

    def trim(self, length: int) -> bool:
        """Go back to the first `length` positions; False, and no change, where that takes rows that were dropped."""
        kept = {i: slot.kept_at(length) for i, slot in self.slots.items()}
        if any(rows is None for rows in kept.values()):
            return False
        for i, rows in kept.items():
            self.slots[i].trim(rows or 0)
        self.next_position = length
        return True

    def arrays(self) -> list[mx.array]:
        """Every buffer, for evaluation."""
        return [array for slot in self.slots.values() for array in slot.rows.buffers]

    @property
    def nbytes(self) -> int:
        """Bytes that the buffers take, spare capacity included."""
        return sum(array.nbytes for array in self.arrays())

    @property
    def bytes_per_position(self) -> int:
        """Bytes that one more token takes, over all slots."""
        return sum(slot.rows.bytes_per_row for slot in self.slots.values())


def as_array(positions: Positions, rows: int) -> np.ndarray:
    """Positions as float64, which holds whole ones exactly and fractional ones closely."""
    if isinstance(positions, OnDevice):
        return positions.host
    if isinstance(positions, int):
        return np.arange(positions, positions + rows, dtype=np.float64)
    return np.asarray(positions, dtype=np.float64)


def _end(positions: Positions, rows: int) -> int:
    """The whole position after the last of `rows` rows in ascending order."""
    if isinstance(positions, OnDevice):
        return positions.end
    return positions + rows if isinstance(positions, int) else int(positions[-1]) + 1


def _rows(config: DecoderConfig, layer: LayerSpec, batch: int, dtype: mx.Dtype, kv_bits: int) -> Rows:
    shape = (batch, layer.kv_heads, layer.head_dim)
    return Int8Rows(*shape, dtype) if kv_bits == 8 or config.quantized_kv else PlainRows(*shape, dtype)
