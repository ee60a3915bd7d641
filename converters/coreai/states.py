"""The two ways in which a function keeps keys and values in its state.

`Written` writes each layer's rows into the state and reads them back from there, as Apple's own models do; a compiler
may do both in place. `Gathered` puts a layer's old rows and new ones together and writes the new ones of all layers at
the end: a runtime that copies the state at every write, as Apple's on a CPU does, copies it once.
"""

from __future__ import annotations

from typing import Protocol

import coreai.authoring  # noqa: F401  before the dialect, which it is entangled with
from coreai._compiler.dialects import coreai as ir

from russet.converters.coreai import operations as ops
from russet.converters.coreai.operations import Value
from russet.models.config import DecoderConfig, LayerSpec

Pair = tuple[Value, Value]
"""Keys and values."""


class State(Protocol):
    """Keys and values of every slot, while a function is emitted."""

    def store(self, slot: int, spec: LayerSpec, rows: Pair) -> None:
        """Rows [1, kv_heads, n, head_dim] for the positions that the function was called for."""
        ...

    def read(self, slot: int, spec: LayerSpec) -> Pair:
        """All rows of a slot, the new ones included, [1, kv_heads, end, head_dim]."""
        ...

    def final(self) -> Pair:
        """The states to go back."""
        ...


class Written:
    """Written layer by layer; new rows are those from position `start` to `end`."""

    def __init__(self, states: Pair, start: Value, end: Value) -> None:
        self._states, self._start, self._end = states, start, end
        self._known: dict[int, Pair] = {}

    def store(self, slot: int, spec: LayerSpec, rows: Pair) -> None:
        begin = [slot, 0, 0, self._start, 0]
        stop = [slot + 1, 1, spec.kv_heads, self._end, spec.head_dim]
        keys, values = (_written(state, begin, stop, new) for state, new in zip(self._states, rows, strict=True))
        self._states = keys, values

    def read(self, slot: int, spec: LayerSpec) -> Pair:
        # Read once: Apple's runtime on a CPU fails where a slot is read again after another one was written.
        if slot not in self._known:
            keys, values = (_rows(state, slot, spec, self._end) for state in self._states)
            self._known[slot] = keys, values
        return self._known[slot]

    def final(self) -> Pair:
        return self._states


class Gathered:
    """Old rows and new ones put together a slot; written once."""

    def __init__(self, states: Pair, start: Value, end: Value, shape: tuple[int, ...]) -> None:
        self._states, self._start, self._end = states, start, end
        self._shape = shape
        self._whole: dict[int, Pair] = {}
        self._new: dict[int, Pair] = {}

    def store(self, slot: int, spec: LayerSpec, rows: Pair) -> None:
        old = [_rows(state, slot, spec, self._start) for state in self._states]
        self._whole[slot] = ops.concat(2, [old[0], rows[0]]), ops.concat(2, [old[1], rows[1]])
        self._new[slot] = self._widened(rows[0]), self._widened(rows[1])

    def read(self, slot: int, spec: LayerSpec) -> Pair:
        return self._whole[slot]

    def final(self) -> Pair:
        count, _, heads, _, dim = self._shape
        stop = [count, 1, heads, self._end, dim]
        new = [ops.concat(0, [self._new[slot][k] for slot in range(count)]) for k in (0, 1)]
        states = [
            ir.slice_update(state, ops.vector([0, 0, 0, self._start, 0]), ops.vector(stop), [1] * 5, rows)
            for state, rows in zip(self._states, new, strict=True)
        ]
        return states[0], states[1]

    def _widened(self, rows: Value) -> Value:
        """Rows [1, 1, kv_heads, n, head_dim] as wide as the state is, with zeros."""
        _, _, heads, _, dim = self._shape
        count = ops.length(rows, 2)
        for axis, width in ((1, heads), (3, dim)):
            missing = width - rows.type.shape[axis]
            if missing:
                shape: list[ops.Index] = [1, rows.type.shape[1], count, rows.type.shape[3]]
                shape[axis] = missing
                rows = ops.concat(axis, [rows, ops.zeros(shape, rows)])
        return ir.expand_dims(rows, [0])


def _written(state: Value, begin: list[ops.Index], stop: list[ops.Index], rows: Value) -> Value:
    return ir.slice_update(state, ops.vector(begin), ops.vector(stop), [1] * 5, ir.expand_dims(rows, [0]))


def _rows(state: Value, slot: int, spec: LayerSpec, end: Value) -> Value:
    """Rows 0 .. end of a slot, [1, kv_heads, end, head_dim]."""
    shape = [1, 1, spec.kv_heads, None, spec.head_dim]
    ends = [slot + 1, 1, spec.kv_heads, end, spec.head_dim]
    return ir.shrink_dims(ops.block(state, [slot, 0, 0, 0, 0], ends, shape), [0])


def slots(config: DecoderConfig) -> dict[int, int]:
    """Which slot of the state each layer reads: one a layer that writes keys and values."""
    writers = [i for i, layer in enumerate(config.layers) if layer.kv_source is None]
    own = {layer: slot for slot, layer in enumerate(writers)}
    return {i: own[i if layer.kv_source is None else layer.kv_source] for i, layer in enumerate(config.layers)}


def state_shape(config: DecoderConfig, capacity: int) -> tuple[int, ...]:
    """[slots, 1, kv_heads, capacity, head_dim]; layers with fewer or narrower heads use a part of their slot."""
    owners = [layer for layer in config.layers if layer.kv_source is None]
    heads, dim = max(layer.kv_heads for layer in owners), max(layer.head_dim for layer in owners)
    return len(owners), 1, heads, capacity, dim
