"""One token of decoding in five kernel launches a layer, where stock operations take about fifteen.

    embed_row                    the token's row of the table
    norm_matvec                  norm, and queries, keys and values
    attend_decode                their norms and rotation, attention over the cached rows and the new one
    merge_matvec                 output projection and residual
    norm_matvec with a gate      norm, gate, up and activation
    residual_matvec              down projection and residual
    norm_matvec                  last norm and head

Decoding is bound by launches where weights are few, so each operation takes in what can be done on the way. Activations
are float32 from end to end. The step is traced once for each capacity of the cache and replayed (mx.compile), since
building it from Python at every token costs more than the launches.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np

from russet.engine.cache import KVCache, RingView
from russet.kernels.attend_decode import ATTEND_DECODE, ATTEND_SHARED
from russet.kernels.backend import backend
from russet.kernels.base import Kernel, mode
from russet.kernels.embed_row import embed_row
from russet.kernels.norm_matvec import norm_matvec
from russet.kernels.packed import BITS, GROUPS, none
from russet.kernels.residual_matvec import MERGE, RESIDUAL
from russet.models.linear import Branches, Dense, Linear, Quantized, Weight
from russet.models.norm import RMSNorm
from russet.models.rope import Rotary

if TYPE_CHECKING:
    from russet.models.decoder import Block, Decoder

_log = logging.getLogger("russet")

Operands = tuple[mx.array, mx.array, mx.array, mx.array]
"""Rows, scales, offsets and bias, as kernels/packed.py has them."""

_SHARED_KERNELS = (ATTEND_DECODE, ATTEND_SHARED, MERGE, RESIDUAL)


class NotFusedError(Exception):
    """Why a model's layers do not fit the kernels; never shown as an error."""


@dataclass(frozen=True, slots=True)
class _Layer:
    """What the kernels take for one block; `own` is the slot it writes, None where it reads another layer's."""

    own: bool
    source: int
    rope: int
    attn_gain: mx.array
    qkv: Operands
    q_norm: mx.array
    k_norm: mx.array
    kv_scales: mx.array
    constants: mx.array
    out: Operands
    ffn_gain: mx.array
    gate_up: Operands
    gated: Kernel
    gated_after: Kernel
    down: Operands
    post_attn: mx.array | None
    post_ffn: mx.array | None


class FusedStep:
    """A decoder's step over one token of one sequence. Raises NotFusedError where the kernels do not fit it."""

    def __init__(self, decoder: Decoder) -> None:
        config = decoder.config
        eps = config.norm_eps
        self._dtype = decoder.dtype
        self._ropes = list(decoder.rotaries.values())
        self._layers = [_layer(block, decoder) for block in decoder.blocks]
        self._slots = [layer.source for layer in self._layers if layer.own]
        self._embedding = _operands(decoder.embed.weight, None, decoder.dtype)[:3]
        self._embed = embed_row(config.hidden_dim, decoder.embed.scale)
        self._head = _linear(decoder.output, decoder.dtype)
        self._gain = _gain(decoder.norm)
        self._norm = norm_matvec(eps)
        self._norm_after = norm_matvec(eps, post=True)
        self._checked = False
        # References trace slowly, and MLX 0.32 fails to compile some of their graphs.
        self._traced = mx.compile(self._step) if mode() == "on" else self._step
        gates = {kernel for layer in self._layers for kernel in (layer.gated, layer.gated_after)}
        self._kernels = [self._embed, self._norm, self._norm_after, *gates, *_SHARED_KERNELS]

    def __call__(self, tokens: mx.array, cache: KVCache) -> mx.array | None:
        """Logits [1, 1, vocab] in float32 after one token [1, 1].

        None, and nothing done, where the cache's rows need a mask or come with scales of their own.
        """
        position = cache.next_position
        views: dict[int, RingView] = {}
        for slot in self._slots:
            view = cache.slots[slot].open_ring(position)
            if view is None:
                return None
            views[slot] = view
        made: dict[tuple[int, ...], mx.array] = {}
        for view in views.values():
            if view.state not in made:
                made[view.state] = mx.array([*view.state, 0, 0, 0, 0], dtype=mx.int32)
        rotations = [rotation_of(rotary, position) for rotary in self._ropes]
        step = self._traced if self._checked else self._step
        logits, rings = step(
            tokens.reshape(-1),
            [made[view.state] for view in views.values()],
            rotations,
            [view.keys for view in views.values()],
            [view.values for view in views.values()],
            [view.ring for view in views.values()],
        )
        self._checked = True
        for slot, ring in zip(views, rings, strict=True):
            cache.slots[slot].close_ring(ring, position)
        cache.next_position = position + 1
        return logits[None, None]

    @property
    def disabled(self) -> bool:
        """Whether a kernel of it is switched off: its reference would be slower than MLX's operations."""
        return any(kernel.disabled for kernel in self._kernels)

    def _step(
        self,
        token: mx.array,
        states: Sequence[mx.array],
        rotations: Sequence[mx.array],
        keys: Sequence[mx.array],
        values: Sequence[mx.array],
        rings: Sequence[mx.array],
    ) -> tuple[mx.array, list[mx.array]]:
        index = {slot: i for i, slot in enumerate(self._slots)}
        rings = list(rings)
        (h,) = self._embed(token, *self._embedding)
        pending: tuple[mx.array, mx.array] | None = None
        for layer in self._layers:
            at = index[layer.source]
            qkv, h = self._normed(self._norm, self._norm_after, h, pending, layer.attn_gain, layer.qkv)
            rows = (keys[at], values[at], rings[at], states[at], rotations[layer.rope], layer.q_norm)
            if layer.own:
                mixed, stats, rings[at] = ATTEND_DECODE(qkv, *rows, layer.k_norm, layer.kv_scales, layer.constants)
            else:
                mixed, stats = ATTEND_SHARED(qkv, *rows, layer.kv_scales, layer.constants)
            h, pending = _added(MERGE, (mixed, stats), h, layer.out, layer.post_attn)
            gated, h = self._normed(layer.gated, layer.gated_after, h, pending, layer.ffn_gain, layer.gate_up)
            h, pending = _added(RESIDUAL, (gated,), h, layer.down, layer.post_ffn)
        logits, _ = self._normed(self._norm, self._norm_after, h, pending, self._gain, self._head)
        return logits, rings

    @staticmethod
    def _normed(
        kernel: Kernel,
        after: Kernel,
        h: mx.array,
        pending: tuple[mx.array, mx.array] | None,
        gain: mx.array,
        operands: Operands,
    ) -> tuple[mx.array, mx.array]:
        """Norm and product, and h; `pending` is what is still to be normed and added to h."""
        if pending is None:
            return kernel(h, gain, *operands)[0], h
        y, h = after(h, *pending, gain, *operands)
        return y, h


def _added(
    kernel: Kernel, x: tuple[mx.array, ...], h: mx.array, operands: Operands, post: mx.array | None
) -> tuple[mx.array, tuple[mx.array, mx.array] | None]:
    """h with the product added, or h and what the next norm adds to it."""
    if post is None:
        return kernel(*x, h, *operands)[0], None
    return h, (kernel(*x, none(), *operands)[0], post)


def rotation_of(rotary: Rotary, position: float) -> mx.array:
    """Cosines and sines of one position as attend_decode takes them: [2, pairs], or [pairs, 2] for neighbours."""
    return mx.array(rotary.row(position).T if rotary.rope.interleaved else rotary.row(position))


def make_fused(decoder: Decoder) -> FusedStep | None:
    """The fused step of a decoder where kernels serve; says so once where the model keeps them from it."""
    if mode() == "off" or (mode() == "on" and backend() is None):
        return None
    try:
        # References take any shape.
        if mode() == "on":
            _check_shapes(decoder)
        return FusedStep(decoder)
    except NotFusedError as reason:
        _log.warning("decoding runs by MLX's operations, since the fused kernels do not take %s", reason)
        return None


def _check_shapes(decoder: Decoder) -> None:
    config = decoder.config
    for spec in config.layers:
        if spec.head_dim % 32 or spec.head_dim > 256:
            raise NotFusedError(f"heads of {spec.head_dim} features")
        for size in (config.hidden_dim, spec.heads * spec.head_dim, spec.ffn_dim):
            if size % 32:
                raise NotFusedError(f"rows of {size} weights")


def _layer(block: Block, decoder: Decoder) -> _Layer:
    config, spec, dtype = decoder.config, block.spec, decoder.dtype
    own = spec.kv_source is None
    source = block.index if own else spec.kv_source
    assert source is not None
    writer = decoder.blocks[source]
    scales = [1.0, 1.0]
    if writer.kv_scales is not None:
        scales = [float(np.array(scale)) for scale in writer.kv_scales]
    # No head has an odd number of features, so this length says that there is no norm.
    no_norm = mx.zeros((9,), dtype=dtype)
    constants = [config.norm_eps, block.scale, float(block.rotate_first)]
    gate = partial(norm_matvec, config.norm_eps, spec.activation)
    return _Layer(
        own=own,
        source=source,
        rope=list(decoder.rotaries).index(spec.rope),
        attn_gain=_gain(block.attn_norm),
        qkv=_joined(block.project, dtype),
        q_norm=_gain(block.q_norm) if block.q_norm else no_norm,
        k_norm=_gain(block.k_norm) if block.k_norm else no_norm,
        kv_scales=_eight(scales),
        constants=_eight(constants),
        out=_linear(block.out, dtype),
        ffn_gain=_gain(block.ffn_norm),
        gate_up=_joined(block.gate_up, dtype),
        gated=gate(),
        gated_after=gate(post=True),
        down=_linear(block.down, dtype),
        post_attn=_gain(block.post_attn_norm) if block.post_attn_norm else None,
        post_ffn=_gain(block.post_ffn_norm) if block.post_ffn_norm else None,
    )


def _eight(values: list[float]) -> mx.array:
    """Metal passes shorter arrays in another address space."""
    return mx.array(np.array([*values, *[0.0] * (8 - len(values))], dtype=np.float32))


def _gain(norm: object) -> mx.array:
    if not isinstance(norm, RMSNorm):
        raise NotFusedError("norms of this kind")
    return norm.weight


def _joined(parts: Branches, dtype: mx.Dtype) -> Operands:
    """Projections of one input as one."""
    if len(parts.maps) != 1:
        raise NotFusedError("projections of one input in several formats")
    return _linear(parts.maps[0], dtype)


def _linear(linear: Linear, dtype: mx.Dtype) -> Operands:
    if isinstance(linear, Dense):
        return _operands(linear.weight, linear.bias, dtype)
    if isinstance(linear, Quantized):
        return _operands(linear.affine, linear.bias, dtype)
    raise NotFusedError("linear maps of this kind")


def _operands(weight: Weight, bias: mx.array | None, dtype: mx.Dtype) -> Operands:
    shift = none(dtype) if bias is None else bias.astype(dtype)
    if isinstance(weight, mx.array):
        return weight, none(dtype), none(dtype), shift
    if weight.bits not in BITS or weight.group_size not in GROUPS:
        raise NotFusedError(f"{weight.bits}-bit weights in groups of {weight.group_size}")
    return weight.weight, weight.scales.astype(dtype), weight.biases.astype(dtype), shift
