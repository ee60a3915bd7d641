"""Storage of a cache slot's rows: as they come, or as int8 with scales.

A buffer is [batch, kv_heads, capacity, width] and grows in steps. The last rows may be in a ring instead, where a fused
decode step puts each new one (a kernel makes new arrays and cannot write into a buffer); whatever else is done with the
rows moves them into the buffers first.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import mlx.core as mx

GROWTH = 256
"""Rows a full buffer grows by."""

RING = 32
"""Rows of the ring: every step copies it, and moving it costs two operations a layer."""


class Rows(ABC):
    """Keys and values of one layer, row by row."""

    def __init__(self, batch: int, heads: int, widths: list[int], dtypes: list[mx.Dtype]) -> None:
        self.length = 0
        self._buffers: list[mx.array] = []
        self._capacity = 0
        self._ring: mx.array | None = None
        self._in_ring = 0
        self._lead = (batch, heads)
        self._widths = widths
        self._dtypes = dtypes

    @abstractmethod
    def encode(self, keys: mx.array, values: mx.array) -> list[mx.array]:
        """What to store for new rows, one array a buffer."""

    @abstractmethod
    def decode(self, stored: list[mx.array]) -> tuple[mx.array, mx.array]:
        """Keys and values out of stored rows."""

    def append(self, keys: mx.array, values: mx.array, room: int = 0) -> None:
        """Store rows [batch, kv_heads, n, head_dim] after the last one; the first ones leave space for `room` more."""
        self._settle()
        end = self.length + keys.shape[2]
        new = self.encode(keys, values)
        if not self.length and end > self._capacity:
            self._begin(new, end + room)
        else:
            if end > self._capacity:
                self._grow(end)
            for i, rows in enumerate(new):
                self._buffers[i][:, :, self.length : end] = rows
        self.length = end

    @property
    def buffers(self) -> list[mx.array]:
        """Every buffer, spare capacity included."""
        self._settle()
        return self._buffers

    @property
    def takes_ring(self) -> bool:
        """Whether rows are keys and values of equal width and nothing else, of one sequence."""
        return len(self._widths) == 2 and self._widths[0] == self._widths[1] and self._lead[0] == 1

    @property
    def in_ring(self) -> int:
        """How many of the last rows are in the ring."""
        return self._in_ring

    def open_ring(self) -> tuple[mx.array, mx.array, mx.array]:
        """The buffers of keys and values, and the ring [2, kv_heads, RING, width] with room for one more row.

        The first `length - in_ring` rows are in the buffers.
        """
        if self._ring is None:
            self._ring = mx.zeros((2, self._lead[1], RING, self._widths[0]), dtype=self._dtypes[0])
        if self._in_ring == RING:
            self._settle()
        if self.length + RING > self._capacity and not self._in_ring:
            self._grow(self.length + RING)
        return self._buffers[0], self._buffers[1], self._ring

    def close_ring(self, ring: mx.array) -> None:
        """Take the ring back with one row more in it."""
        self._ring = ring
        self._in_ring += 1
        self.length += 1

    def _settle(self) -> None:
        """Move the ring's rows into the buffers."""
        if not self._in_ring or self._ring is None:
            return
        start = self.length - self._in_ring
        for i, buffer in enumerate(self._buffers):
            buffer[:, :, start : self.length] = self._ring[i : i + 1, :, : self._in_ring]
        self._in_ring = 0

    def read(self, start: int) -> tuple[mx.array, mx.array]:
        """Keys and values of the rows from `start` on."""
        return self.decode([buffer[:, :, start : self.length] for buffer in self.buffers])

    def stored(self) -> list[mx.array]:
        """The rows in use, as stored."""
        return [buffer[:, :, : self.length] for buffer in self.buffers]

    def load(self, stored: list[mx.array]) -> None:
        """Replace everything by rows that `stored` of an equal storage gave."""
        self.length = self._capacity = stored[0].shape[2]
        self._buffers = list(stored)
        self._in_ring = 0

    def reserve(self, rows: int) -> None:
        """Make room for `rows` rows in total."""
        self._settle()
        if rows > self._capacity:
            self._grow(rows)

    def trim(self, length: int) -> None:
        """Forget the rows after the first `length`."""
        self._settle()
        self.length = length

    def drop(self, count: int) -> None:
        """Forget the first `count` rows."""
        # A kernel that takes the buffers would copy slices at every step.
        self._buffers = [mx.contiguous(buffer[:, :, count:]) for buffer in self.buffers]
        self._capacity -= count
        self.length -= count

    @property
    def bytes_per_row(self) -> int:
        per_head = sum(width * dtype.size for width, dtype in zip(self._widths, self._dtypes, strict=True))
        return self._lead[0] * self._lead[1] * per_head

    def _begin(self, new: list[mx.array], rows: int) -> None:
        """Buffers of the first rows and zeros behind them: an array of zeros to write into would be written twice."""
        self._capacity = _rounded(rows)
        spare = self._capacity - new[0].shape[2]
        self._buffers = [
            mx.concatenate([x.astype(dtype), mx.zeros((*self._lead, spare, width), dtype=dtype)], axis=2)
            if spare
            else mx.contiguous(x.astype(dtype))
            for x, width, dtype in zip(new, self._widths, self._dtypes, strict=True)
        ]

    def _grow(self, rows: int) -> None:
        capacity = _rounded(rows)
        grown = [
            mx.zeros((*self._lead, capacity - self.length, width), dtype=dtype)
            for width, dtype in zip(self._widths, self._dtypes, strict=True)
        ]
        if self.length:
            grown = [mx.concatenate([old, new], axis=2) for old, new in zip(self.stored(), grown, strict=True)]
        self._buffers = grown
        self._capacity = capacity


def _rounded(rows: int) -> int:
    return -(-rows // GROWTH) * GROWTH


class PlainRows(Rows):
    """Rows as the decoder computes them."""

    def __init__(self, batch: int, heads: int, head_dim: int, dtype: mx.Dtype) -> None:
        super().__init__(batch, heads, [head_dim] * 2, [dtype] * 2)

    def encode(self, keys: mx.array, values: mx.array) -> list[mx.array]:
        return [keys, values]

    def decode(self, stored: list[mx.array]) -> tuple[mx.array, mx.array]:
        return stored[0], stored[1]


class Int8Rows(Rows):
    """Rows on an int8 grid.

    Scales are one a row and head, largest magnitude / 127 in float32: half the memory of 16-bit rows and 6 % on top at
    a head size of 64. Where the model brings a scale a layer (`scales`, AFM), those serve, none are stored, and what is
    read equals what the model was trained with.
    """

    def __init__(self, batch: int, heads: int, head_dim: int, dtype: mx.Dtype) -> None:
        super().__init__(batch, heads, [head_dim, head_dim, 1, 1], [mx.int8, mx.int8, mx.float32, mx.float32])
        self._dtype = dtype
        self.scales: tuple[mx.array, mx.array] | None = None

    def use_scales(self, key_scale: mx.array, value_scale: mx.array) -> None:
        """Switch to the model's own scales; before the first row."""
        self.scales = (key_scale.astype(mx.float32), value_scale.astype(mx.float32))
        self._widths, self._dtypes = self._widths[:2], self._dtypes[:2]

    def encode(self, keys: mx.array, values: mx.array) -> list[mx.array]:
        if self.scales is not None:
            return [_to_int8(x, scale) for x, scale in zip((keys, values), self.scales, strict=True)]
        scales = [_row_scale(x) for x in (keys, values)]
        return [_to_int8(x, scale) for x, scale in zip((keys, values), scales, strict=True)] + scales

    def decode(self, stored: list[mx.array]) -> tuple[mx.array, mx.array]:
        key_scale, value_scale = self.scales or (stored[2], stored[3])
        return (stored[0] * key_scale).astype(self._dtype), (stored[1] * value_scale).astype(self._dtype)


def _row_scale(x: mx.array) -> mx.array:
    largest = mx.abs(x.astype(mx.float32)).max(axis=-1, keepdims=True)
    return mx.maximum(largest / 127, 1e-12)


def _to_int8(x: mx.array, scale: mx.array) -> mx.array:
    return mx.clip(mx.round(x.astype(mx.float32) / scale), -128, 127).astype(mx.int8)
