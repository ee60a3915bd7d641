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
from russet.kernels.attend_decode import ATTEND_DECODE, ATTEND_SHARED, pack_steps
from russet.kernels.backend import backend
from russet.kernels.base import Kernel, mode, switched_off
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
    steps: list[list[mx.array]]
    """What is each slot's own in the steps to come, until the ring is full."""
    position: int
    in_ring: int = 0

    def goes_on(self, position: int) -> bool:
        """Whether the next step, at `position`, finds the rows as the last one left them."""
        as_left = all(slot.rows.in_ring == self.in_ring for slot in self.slots)
        return 0 < self.in_ring < RING and position == self.position and as_left


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
        self._disabled, self._asked_at = False, -1
        # Whoever holds a cache keeps it alive; the step does not.
        self._live: WeakKeyDictionary[KVCache, _Live] = WeakKeyDictionary()

    def __call__(self, tokens: mx.array, cache: KVCache) -> mx.array | None:
        """Logits [1, 1, vocab] in float32 after one token [1, 1].

        None, and nothing done, where the cache's rows need a mask or come with scales of their own.
        """
        position = cache.next_position
        live = self._live.get(cache)
        if live is None or not live.goes_on(position):
            live = self._open(cache)
        if live is None:
            return None
        # The first step runs kernel by kernel, since each is checked before it serves.
        step = self._traced if self._checked else self._step
        logits, live.rings = step(tokens, live.steps.pop(0), live.keys, live.values, live.rings)
        for slot, ring in zip(live.slots, live.rings, strict=True):
            slot.close_ring(ring, position)
        live.in_ring = live.slots[0].rows.in_ring
        live.position = cache.next_position = position + 1
        self._checked, self._live[cache] = True, live
        return logits

    @property
    def disabled(self) -> bool:
        """Whether a kernel of it is switched off: its reference would be slower than MLX's operations."""
        if self._asked_at != switched_off():
            self._asked_at = switched_off()
            attention = ATTEND_DECODE.disabled or ATTEND_SHARED.disabled
            self._disabled = bool(attention) or any(part.disabled for part in (self._head, *self._layers))
        return self._disabled

    def _open(self, cache: KVCache) -> _Live | None:
        slots = [cache.slots[source] for source in self._owners]
        views: list[RingView] = []
        for slot in slots:
            view = slot.open_ring(cache.next_position)
            if view is None:
                return None
            views.append(view)
        keys, values, rings = ([getattr(view, name) for view in views] for name in ("keys", "values", "ring"))
        position = cache.next_position
        return _Live(slots, keys, values, rings, self._steps(slots, views, position), position)

    def _steps(self, slots: list[Slot], views: list[RingView], position: int) -> list[list[mx.array]]:
        """What is each slot's own at `position` and after it, until the ring is full; slots that are alike share it."""
        ahead = range(RING - slots[0].rows.in_ring)
        made: dict[object, list[mx.array]] = {}
        by_slot = []
        for slot, view, rope in zip(slots, views, self._rope_of, strict=True):
            alike = (view.state, slot.window, slot.first, rope)
            if alike not in made:
                states = [slot.ring_state(position, later) for later in ahead]
                made[alike] = pack_steps(states, [self._rotations[rope].at(position + later) for later in ahead])
            by_slot.append(made[alike])
        return [list(each) for each in zip(*by_slot, strict=True)]

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
