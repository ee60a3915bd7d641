"""The one decoder: every family runs through it, driven by `DecoderConfig` alone.

A prefill strategy needs three calls of it: `embed`, `run` over any contiguous range of layers on rows at explicit
positions, and `head`. `extend` puts them together for rows that follow the cache.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx

from russet.engine.cache import KVCache
from russet.engine.rows import Int8Rows
from russet.models.attention import Attend
from russet.models.config import DecoderConfig, LayerSpec
from russet.models.fused import FusedStep, make_fused
from russet.models.linear import Branches, Embedding, Linear, Quantized
from russet.models.pacing import pace
from russet.models.rope import OnDevice, Positions, Rotary, Rotate
from russet.models.sparse_ffn import StepFFN

Norm = Callable[[mx.array], mx.array]
Gate = Callable[[mx.array, mx.array], mx.array]


class Probe:
    """What a prefill strategy may watch while rows run through layers; a subclass overrides what it needs."""

    def normed(self, layer: int, rows: mx.array) -> None:
        """Rows [batch, rows, hidden] after the norm in front of attention: what a layer projects."""

    def keys_values(self, layer: int, keys: mx.array, values: mx.array) -> None:
        """Keys before their norm and rotation, and values, of a layer that writes its own.

        Both are [batch, kv_heads, rows, head_dim]. `Decoder.store` takes them back, at any positions.
        """

    def queries(self, layer: int, queries: mx.array, cache: KVCache) -> None:
        """Queries [batch, heads, rows, head_dim] as they meet the keys of `cache.slot(layer)`, theirs included."""

    def ffn(self, layer: int, x: mx.array, gate: mx.array, up: mx.array) -> None:
        """An FFN's normalised input [batch, rows, hidden], and its two projections before the activation."""


class Block:
    """One layer: attention and FFN, each behind a norm and in front of a residual addition."""

    def __init__(
        self,
        index: int,
        spec: LayerSpec,
        scale: float,
        *,
        attn_norm: Norm,
        project: Branches,
        attend: Attend,
        out: Linear,
        ffn_norm: Norm,
        gate_up: Branches,
        gate: Gate,
        down: Linear,
        q_norm: Norm | None = None,
        k_norm: Norm | None = None,
        rotate_first: bool = False,
        kv_scales: tuple[mx.array, mx.array] | None = None,
        post_attn_norm: Norm | None = None,
        post_ffn_norm: Norm | None = None,
        step_ffn: StepFFN | None = None,
    ) -> None:
        self.index = index
        self.spec = spec
        self.scale = scale
        self.attn_norm = attn_norm
        self.project = project
        self.attend = attend
        self.out = out
        self.ffn_norm = ffn_norm
        self.gate_up = gate_up
        self.gate = gate
        self.down = down
        self.q_norm = q_norm
        self.k_norm = k_norm
        self.rotate_first = rotate_first
        self.kv_scales = kv_scales
        self.post_attn_norm = post_attn_norm
        self.post_ffn_norm = post_ffn_norm
        self.step_ffn = step_ffn

    def __call__(
        self,
        h: mx.array,
        positions: Positions,
        rotate: Rotate,
        cache: KVCache,
        last: int | None = None,
        probe: Probe | None = None,
    ) -> mx.array:
        """One pass over rows [batch, rows, hidden]; `last` keeps only that many rows once keys and values are in."""
        rows = h.shape[1]
        queries = self._project(self.attn_norm(h), positions, rotate, cache, probe)
        if probe is not None:
            probe.queries(self.index, queries, cache)
        if last is not None and last < rows:
            h, queries, positions = h[:, rows - last :], queries[:, :, rows - last :], _tail(positions, rows, last)
        if last == 0:
            return h
        h = self._add(h, self._attention(queries, positions, cache), self.out, self.post_attn_norm)
        if self.step_ffn is not None and self.step_ffn.takes(h.shape[0] * h.shape[1]):
            return self.step_ffn(h)
        x = self.ffn_norm(h)
        gate, up = self.gate_up(x)
        if probe is not None:
            probe.ffn(self.index, x, gate, up)
        return self._add(h, self.gate(gate, up), self.down, self.post_ffn_norm)

    @property
    def arrays(self) -> list[mx.array]:
        """The parameters of its linear maps, for evaluation."""
        maps = (self.project, self.out, self.gate_up, self.down)
        return [array for part in maps for array in part.arrays]

    def store(self, keys: mx.array, values: mx.array, positions: Positions, rotate: Rotate, cache: KVCache) -> None:
        """Append keys, neither normalised nor rotated yet, and values, both [batch, kv_heads, rows, head_dim]."""
        cache.slot(self.index).append(self._turn(keys, self.k_norm, rotate), values, positions)

    def _project(
        self, x: mx.array, positions: Positions, rotate: Rotate, cache: KVCache, probe: Probe | None = None
    ) -> mx.array:
        """Queries [batch, heads, rows, head_dim], after storing the rows' keys and values where the layer owns them."""
        spec = self.spec
        if probe is not None:
            probe.normed(self.index, x)
        queries, *keys_values = self.project(x)
        queries = self._turn(_heads(queries, spec.heads), self.q_norm, rotate)
        if keys_values:
            keys, values = (_heads(part, spec.kv_heads) for part in keys_values)
            if probe is not None:
                probe.keys_values(self.index, keys, values)
            self.store(keys, values, positions, rotate, cache)
        return queries

    def _turn(self, x: mx.array, norm: Norm | None, rotate: Rotate) -> mx.array:
        if norm is None:
            return rotate(x)
        return norm(rotate(x)) if self.rotate_first else rotate(norm(x))

    def _attention(self, queries: mx.array, positions: Positions, cache: KVCache) -> mx.array:
        batch, _, rows, _ = queries.shape
        keys, values, mask = cache.slot(self.index).read(positions, rows)
        mixed = self.attend(queries, keys, values, self.scale, mask)
        return (mixed if rows == 1 else mixed.transpose(0, 2, 1, 3)).reshape(batch, rows, -1)

    @staticmethod
    def _add(h: mx.array, x: mx.array, linear: Linear, post_norm: Norm | None) -> mx.array:
        return linear.add_to(h, x) if post_norm is None else h + post_norm(linear(x))


class Decoder:
    """A decoder-only transformer on one device.

    `fused_rope` picks MLX's rotary operation (a GPU) over shared cosine tables (a CPU).
    """

    def __init__(
        self,
        config: DecoderConfig,
        dtype: mx.Dtype,
        embed: Embedding,
        blocks: list[Block],
        norm: Norm,
        head: Linear,
        fused_rope: bool,
    ) -> None:
        self.config = config
        self.source: Path | None = None
        """The folder that the weights come from, where they are unchanged."""
        self.cuts_ffns = False
        """Whether a folder's thresholds leave active neurons out, which makes every reply lossy."""
        self.dtype = dtype
        self.embed = embed
        self.blocks = blocks
        self.norm = norm
        self.output = head
        self.fused_rope = fused_rope
        self.rotaries = {rope: Rotary(rope) for rope in {layer.rope for layer in config.layers}}
        self._step: FusedStep | None = None
        self._step_made = False

    @property
    def packed(self) -> bool:
        """Whether its linear maps keep their weights packed."""
        return isinstance(self.blocks[0].out, Quantized)

    def new_cache(self, kv_bits: int = 16, batch: int = 1) -> KVCache:
        """An empty cache for this model; `kv_bits` 8 stores int8 rows."""
        cache = KVCache(self.config, self.dtype, kv_bits, batch)
        for block in self.blocks:
            if block.kv_scales is not None:
                rows = cache.slot(block.index).rows
                assert isinstance(rows, Int8Rows)
                rows.use_scales(*block.kv_scales)
        return cache

    def run(
        self,
        h: mx.array,
        layers: range,
        positions: Positions,
        cache: KVCache,
        last: int | None = None,
        probe: Probe | None = None,
    ) -> mx.array:
        """Rows [batch, rows, hidden] through a contiguous range of layers.

        With `last`, the range's final layer stores keys and values of all rows and then goes on with the last `last`
        of them only; 0 stops there. `positions` are those of the rows that come in. `probe` watches.
        """
        rows = h.shape[1]
        rotations = {rope: rotary.at(positions, rows, self.fused_rope) for rope, rotary in self.rotaries.items()}
        paced = pace(self.config, self.packed, h.shape[0] * rows, self.dtype)
        for i in layers:
            block = self.blocks[i]
            keep = last if i == layers[-1] else None
            h = block(h, positions, rotations[block.spec.rope], cache, keep, probe)
            paced.layer(h)
        return h

    def store(self, layer: int, keys: mx.array, values: mx.array, positions: Positions, cache: KVCache) -> None:
        """Append rows as a `Probe` saw them, [batch, kv_heads, rows, head_dim], to a layer's slot at `positions`."""
        block = self.blocks[layer]
        rotate = self.rotaries[block.spec.rope].at(positions, keys.shape[2], self.fused_rope)
        block.store(keys, values, positions, rotate, cache)

    def head(self, h: mx.array) -> mx.array:
        """Logits [batch, rows, vocab] of hidden rows."""
        return self.output(self.norm(h))

    def extend(self, tokens: mx.array, cache: KVCache, logits: int = 1) -> mx.array | None:
        """Append tokens [batch, rows] to the cache; logits of the last `logits` rows, or None for 0.

        Layers after the last one that writes keys and values see only the rows whose logits are asked for: with shared
        keys and values most of those layers' prefill work is never done.
        """
        if logits == 1 and tokens.size == 1 and (step := self._fused_step()) is not None:
            out = step(tokens, cache)
            if out is not None:
                return out
        start, rows = cache.next_position, tokens.shape[1]
        writer, count = self.config.last_writer, len(self.blocks)
        h = self.run(self.embed(tokens), range(writer + 1), start, cache, last=logits)
        if logits and writer + 1 < count:
            h = self.run(h, range(writer + 1, count), start + rows - logits, cache)
        cache.next_position = start + rows
        return self.head(h) if logits else None

    def _fused_step(self) -> FusedStep | None:
        """The step by kernels, made at the first token that is decoded; None where they do not serve."""
        if not self._step_made:
            self._step, self._step_made = make_fused(self), True
        if self._step is not None and self._step.disabled:
            self._step = None
        return self._step


def _heads(x: mx.array, heads: int) -> mx.array:
    """[batch, rows, heads * head_dim] -> [batch, heads, rows, head_dim]."""
    batch, rows, _ = x.shape
    if rows == 1:
        return x.reshape(batch, heads, 1, -1)
    return x.reshape(batch, rows, heads, -1).transpose(0, 2, 1, 3)


def _tail(positions: Positions, rows: int, last: int) -> Positions:
    """The positions of the last `last` of `rows` rows."""
    if isinstance(positions, OnDevice):
        return positions.last(last)
    return positions + rows - last if isinstance(positions, int) else positions[rows - last :]
