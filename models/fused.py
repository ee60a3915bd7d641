"""One token of decoding in five kernel launches a layer, where stock operations take about fifteen.

    embed_row                    the token's row of the table
    norm_matvec                  norm, and queries, keys and values
    attend_decode                their norms and rotation, attention over the cached rows and the new one
    merge_matvec                 output projection and residual
    norm_matvec with a gate      norm, gate, up and activation
    residual_matvec              down projection and residual
    norm_matvec                  last norm and head

Decoding is bound by launches where weights are few, so each operation takes in what can be done on the way, and its
weights are one array (kernels/sheet.py). Activations are float32 from end to end. The step is traced once for each
capacity of the cache and replayed (mx.compile), for to build it from Python costs more than the launches.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import mlx.core as mx
import numpy as np

from russet.engine.cache import KVCache, RingView, Slot
from russet.engine.errors import UnsupportedModelError
from russet.engine.rows import RING
from russet.kernels.attend_decode import ATTEND_DECODE, ATTEND_SHARED, pack_step
from russet.kernels.backend import backend
from russet.kernels.base import Kernel, mode
from russet.models.fused_layer import FusedLayer, Head, check_shapes, fused_head, fused_layer
from russet.models.rope import Rotary
from russet.models.sparse_ffn import KernelFFN

if TYPE_CHECKING:
    from russet.models.decoder import Decoder

_log = logging.getLogger("russet")

Pending = mx.array | None
"""What the next norm has to norm itself and add to the residual, for models that norm a branch's output too."""


@dataclass(slots=True)
class _Live:
    """A cache as the last step left it, as long as nobody else touches its rows."""

    slots: list[Slot]
    keys: list[mx.array]
    values: list[mx.array]
    rings: list[mx.array]
    groups: list[tuple[Slot, int, list[int]]]
    """Slots that stay alike from step to step: one of them, the rotation of their readers, and which they are."""
    in_ring: int = 0

    @property
    def goes_on(self) -> bool:
        return 0 < self.in_ring < RING and all(slot.rows.in_ring == self.in_ring for slot in self.slots)


class _Rotations:
    """Cosines and sines of the positions to come, made for many at once."""

    def __init__(self, rotary: Rotary) -> None:
        self._rotary = rotary
        self._start = 0
        self._table = rotary.table(0, _TABLE_ROWS)

    def at(self, position: int) -> np.ndarray:
        """[2, pairs] float32."""
        if not 0 <= position - self._start < len(self._table):
            self._start, self._table = position, self._rotary.table(position, _TABLE_ROWS)
        return self._table[position - self._start]


_TABLE_ROWS = 256


class FusedStep:
    """A decoder's step over one token of one sequence. Raises UnsupportedModelError where the kernels do not fit it."""

    def __init__(self, decoder: Decoder) -> None:
        self._rotations = [_Rotations(rotary) for rotary in decoder.rotaries.values()]
        self._no_step = mx.zeros((8,))
        self._layers: list[FusedLayer] = []
        for block in decoder.blocks:
            self._layers.append(fused_layer(block, decoder))
        self._head: Head = fused_head(decoder)
        self._owners = [layer.source for layer in self._layers if layer.owns]
        # The rotation that each slot's readers share, by the slot's number.
        self._rope_of = [layer.rope for layer in self._layers if layer.owns]
        # References trace slowly, and MLX 0.32 fails to compile some of their graphs.
        self._traced = mx.compile(self._step) if mode() == "on" else self._step
        self._checked = False
        # Whoever holds a cache keeps it alive; the step does not.
        self._live: WeakKeyDictionary[KVCache, _Live] = WeakKeyDictionary()

    def __call__(self, tokens: mx.array, cache: KVCache) -> mx.array | None:
        """Logits [1, 1, vocab] in float32 after one token [1, 1].

        None, and nothing done, where the cache's rows need a mask or come with scales of their own.
        """
        live = self._live.get(cache)
        if live is None or not live.goes_on:
            live = self._open(cache)
        if live is None:
            return None
        position = cache.next_position
        # The first step runs kernel by kernel, since each is checked before it serves.
        step = self._traced if self._checked else self._step
        logits, live.rings = step(tokens, self._steps(live, position), live.keys, live.values, live.rings)
        for slot, ring in zip(live.slots, live.rings, strict=True):
            slot.close_ring(ring, position)
        live.in_ring = live.slots[0].rows.in_ring
        cache.next_position = position + 1
        self._checked, self._live[cache] = True, live
        return logits

    @property
    def disabled(self) -> bool:
        """Whether a kernel of it is switched off: its reference would be slower than MLX's operations."""
        attention = ATTEND_DECODE.disabled or ATTEND_SHARED.disabled
        return bool(attention) or any(part.disabled for part in (self._head, *self._layers))

    def _open(self, cache: KVCache) -> _Live | None:
        slots = [cache.slots[source] for source in self._owners]
        views: list[RingView] = []
        for slot in slots:
            view = slot.open_ring(cache.next_position)
            if view is None:
                return None
            views.append(view)
        keys, values, rings = ([getattr(view, name) for view in views] for name in ("keys", "values", "ring"))
        alike: dict[object, list[int]] = {}
        for i, (slot, view, rope) in enumerate(zip(slots, views, self._rope_of, strict=True)):
            alike.setdefault((view.state, slot.window, slot.first, rope), []).append(i)
        groups = [(slots[members[0]], self._rope_of[members[0]], members) for members in alike.values()]
        return _Live(slots, keys, values, rings, groups)

    def _steps(self, live: _Live, position: int) -> list[mx.array]:
        """What is each slot's own at this position."""
        steps = [self._no_step] * len(live.slots)
        for slot, rope, members in live.groups:
            step = pack_step(slot.ring_state(position), self._rotations[rope].at(position))
            for member in members:
                steps[member] = step
        return steps

    def _step(
        self,
        token: mx.array,
        steps: Sequence[mx.array],
        keys: Sequence[mx.array],
        values: Sequence[mx.array],
        rings: Sequence[mx.array],
    ) -> tuple[mx.array, list[mx.array]]:
        slot = {source: i for i, source in enumerate(self._owners)}
        rings = list(rings)
        (h,) = self._head.embed(token, self._head.table)
        pending: Pending = None
        for layer in self._layers:
            at = slot[layer.source]
            qkv, h = _normed(layer.project, h, pending, layer.qkv)
            rows = (qkv, keys[at], values[at], rings[at], steps[at], layer.form)
            if layer.owns:
                parts, rings[at] = ATTEND_DECODE(*rows)
            else:
                (parts,) = ATTEND_SHARED(*rows)
            h, pending = _added(layer.merge, parts, h, layer.out, layer.post_norms)
            ffn = layer.ffn
            if isinstance(ffn, KernelFFN):
                h = ffn(h)
            else:
                gated, h = _normed(ffn.gate, h, pending, ffn.gate_up)
                h, pending = _added(ffn.add, gated, h, ffn.down, layer.post_norms)
        logits, _ = _normed(self._head.project, h, pending, self._head.sheet)
        return logits[None, None], rings


def make_fused(decoder: Decoder) -> FusedStep | None:
    """The fused step of a decoder where kernels serve; says so once where the model keeps them from it."""
    if mode() == "off" or (mode() == "on" and backend() is None):
        return None
    try:
        # References take any shape.
        if mode() == "on":
            check_shapes(decoder.config)
        return FusedStep(decoder)
    except UnsupportedModelError as reason:
        _log.warning("decoding runs by MLX's operations, since the fused kernels do not take %s", reason)
        return None


def _normed(kernel: Kernel, h: mx.array, pending: Pending, sheet: mx.array) -> tuple[mx.array, mx.array]:
    """Norm and product, and h with what was pending added to it."""
    if pending is None:
        return kernel(h, sheet)[0], h
    y, h = kernel(h, pending, sheet)
    return y, h


def _added(kernel: Kernel, x: mx.array, h: mx.array, sheet: mx.array, post_norms: bool) -> tuple[mx.array, Pending]:
    """h with the product added; or h, and the product for the next norm to add."""
    if post_norms:
        return h, kernel(x, sheet)[0]
    return kernel(x, h, sheet)[0], None
