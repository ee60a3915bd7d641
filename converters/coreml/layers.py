"""One transformer block in MIL: norms that cannot overflow, attention over a state of fixed size, gated FFNs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from russet.converters.coreml.bank import Bank, Var
from russet.converters.coreml.builder import mb
from russet.converters.coreml.rotation import head_order, row_order
from russet.converters.coreml.rows import Rows, ints, tiled
from russet.models.config import DecoderConfig, LayerSpec

POST_NORM_SCALE = 2.0**-5
"""What the residual stream is multiplied by where every branch is normed before it is added (Gemma), whose stream
otherwise passes float16's largest number. Norms undo it, so that the result is the same."""


def residual_scale(config: DecoderConfig) -> float:
    return POST_NORM_SCALE if config.post_norms else 1.0


def rms_norm(x: Var, gain: Var, eps: float) -> Var:
    """x / sqrt(mean(x^2) + eps) * gain over the last axis, with squares of numbers up to 1 only.

    With m = max(|x|, sqrt(eps)) the root is m sqrt(mean((x / m)^2) + (sqrt(eps) / m)^2): nothing overflows in float16,
    where the square of 256 does.
    """
    root = np.float16(max(math.sqrt(eps), 2.0**-14))
    largest = mb.maximum(x=mb.reduce_max(x=mb.abs(x=x), axes=[-1], keep_dims=True), y=root)
    unit = mb.real_div(x=x, y=largest)
    mean = mb.reduce_mean(x=mb.mul(x=unit, y=unit), axes=[-1], keep_dims=True)
    floor = mb.real_div(x=root, y=largest)
    rms = mb.mul(x=largest, y=mb.sqrt(x=mb.add(x=mean, y=mb.mul(x=floor, y=floor))))
    return mb.mul(x=mb.real_div(x=x, y=rms), y=gain)


@dataclass
class State:
    """A part's rows: states [1, heads of all layers, context, head_dim], and where each layer's heads begin."""

    keys: Var
    values: Var
    offsets: dict[int, int]
    current: tuple[Var, Var]

    def append(self, layer: int, rows: Rows, keys: Var, values: Var) -> None:
        """Write rows [1, kv_heads, rows, head_dim] of a layer at the positions of the call."""
        offset, heads, width = self.offsets[layer], keys.shape[1], keys.shape[3]
        begin = mb.concat(values=[ints(0, offset), rows.begin, ints(0)], axis=0)
        end = mb.concat(values=[ints(1, offset + heads), rows.end, ints(width)], axis=0)
        updated = []
        for state, now, new in zip((self.keys, self.values), self.current, (keys, values), strict=True):
            value = mb.slice_update(x=now, update=new, begin=begin, end=end)
            updated.append(mb.coreml_update_state(state=state, value=value))
        self.current = updated[0], updated[1]

    def read(self, layer: int, spec: LayerSpec) -> tuple[Var, Var]:
        """All rows of a layer, [1, kv_heads, context, head_dim]."""
        begin, size = [0, self.offsets[layer], 0, 0], [1, spec.kv_heads, -1, -1]
        keys, values = (mb.slice_by_size(x=now, begin=begin, size=size) for now in self.current)
        return keys, values


class Block:
    """One layer of a function."""

    def __init__(self, config: DecoderConfig, layer: int, bank: Bank, state: State) -> None:
        self.config = config
        self.layer = layer
        self.spec = config.layers[layer]
        self.bank = bank
        self.state = state
        self._heads_order = head_order(self.spec)
        self._eps = config.norm_eps * residual_scale(config) ** 2

    def store(self, x: Var, rows: Rows) -> None:
        """Compute and write keys and values of normed rows, where the layer owns them."""
        if self.spec.kv_source is not None:
            return
        keys = self._turn(self._heads(self._linear(x, "k"), self.spec.kv_heads, rows), "k_norm", rows)
        values = self._heads(self._linear(x, "v"), self.spec.kv_heads, rows)
        if self.config.quantized_kv:
            keys, values = self._on_grid(keys, "k_scale"), self._on_grid(values, "v_scale")
        self.state.append(self.layer, rows, keys, values)

    def norm(self, x: Var, part: str) -> Var:
        """A norm over the hidden size."""
        return rms_norm(x, self.bank.tensor(f"layers.{self.layer}.{part}"), self._eps)

    def attend(self, x: Var, rows: Rows) -> Var:
        """The attention's output for normed rows, before it is added."""
        spec, config = self.spec, self.config
        queries = self._turn(self._heads(self._linear(x, "q"), spec.heads, rows), "q_norm", rows)
        scale = config.attention_scale or spec.head_dim**-0.5
        source = self.layer if spec.kv_source is None else spec.kv_source
        keys, values = self.state.read(source, spec)
        if spec.attention == "sigmoid":
            mixed = self._sigmoid(queries, keys, values, scale, rows)
        else:
            mixed = self._softmax(queries, keys, values, scale, rows)
        return self._post(self._linear(self._joined(mixed, rows), "o"), "post_attn_norm")

    def feed_forward(self, x: Var) -> Var:
        """The FFN's output for normed rows, before it is added."""
        gate = self._linear(x, "gate")
        gated = mb.mul(x=_activation(self.spec, gate), y=self._linear(x, "up"))
        return self._post(self._linear(gated, "down"), "post_ffn_norm")

    def _linear(self, x: Var, part: str) -> Var:
        role = f"layers.{self.layer}.{part}"
        heads = {"q": self.spec.heads, "k": self.spec.kv_heads}.get(part)
        order = None if heads is None else row_order(self.spec, heads)
        bias = self.bank.bias(role, order)
        return mb.linear(x=x, weight=self.bank.tensor(role, order), **({} if bias is None else {"bias": bias}))

    def _post(self, x: Var, part: str) -> Var:
        if not self.config.post_norms:
            return x
        normed = rms_norm(x, self.bank.tensor(f"layers.{self.layer}.{part}"), self.config.norm_eps)
        return mb.mul(x=normed, y=np.float16(POST_NORM_SCALE))

    def _turn(self, x: Var, norm: str, rows: Rows) -> Var:
        """Rotate heads, and norm them before or after it."""
        rotate = rows.rotations[self.spec.rope]
        if self.config.qk_norm == "none":
            return rotate(x)
        gain = self.bank.tensor(f"layers.{self.layer}.{norm}", self._heads_order)
        if self.config.qk_norm == "after_rope":
            return rms_norm(rotate(x), gain, self.config.norm_eps)
        return rotate(rms_norm(x, gain, self.config.norm_eps))

    def _heads(self, x: Var, heads: int, rows: Rows) -> Var:
        """[1, rows, heads * head_dim] -> [1, heads, rows, head_dim]."""
        width = self.spec.head_dim
        if rows.count == 1:
            return mb.reshape(x=x, shape=[1, heads, 1, width])
        split = mb.reshape(x=x, shape=[1, rows.count or -1, heads, width])
        return mb.transpose(x=split, perm=[0, 2, 1, 3])

    def _joined(self, mixed: Var, rows: Rows) -> Var:
        """Heads grouped by keys, [1, kv_heads, group * rows, head_dim] -> [1, rows, heads * head_dim]."""
        spec = self.spec
        width = spec.heads * spec.head_dim
        if rows.count == 1:
            return mb.reshape(x=mixed, shape=[1, 1, width])
        if rows.count is None:
            count = mb.sub(x=rows.end, y=rows.begin)
            shape = mb.concat(values=[ints(1, spec.heads), count, ints(spec.head_dim)], axis=0)
        else:
            shape = ints(1, spec.heads, rows.count, spec.head_dim)
        return mb.reshape(
            x=mb.transpose(x=mb.reshape(x=mixed, shape=shape), perm=[0, 2, 1, 3]), shape=[1, rows.count or -1, width]
        )

    def _grouped(self, queries: Var, rows: Rows) -> Var:
        """The heads that share keys side by side, so that MIL's attention needs no copies of the keys."""
        spec = self.spec
        count = -1 if rows.count is None else self._group * rows.count
        return mb.reshape(x=queries, shape=[1, spec.kv_heads, count, spec.head_dim])

    @property
    def _group(self) -> int:
        return self.spec.heads // self.spec.kv_heads

    def _softmax(self, queries: Var, keys: Var, values: Var, scale: float, rows: Rows) -> Var:
        factor = scale * math.sqrt(self.spec.head_dim)
        if abs(factor - 1) > 1e-6:
            queries = mb.mul(x=queries, y=self.bank.scalar(f"attention_factor_{factor:.9g}", factor))
        mask = rows.mask(self.spec.window, self._group)
        return mb.scaled_dot_product_attention(
            query=self._grouped(queries, rows), key=keys, value=values, attn_mask=mask
        )

    def _sigmoid(self, queries: Var, keys: Var, values: Var, scale: float, rows: Rows) -> Var:
        """sigmoid(scale Q K^T + b) V over the keys that are seen; b is a number, or minus the log of their count."""
        visible = mb.cast(x=rows.visible[self.spec.window], dtype="fp16")
        scaled = mb.mul(x=self._grouped(queries, rows), y=self.bank.scalar(f"sigmoid_scale_{scale:.9g}", scale))
        scores = mb.matmul(x=scaled, y=keys, transpose_y=True)
        if self.spec.sigmoid_bias is not None:
            bias: Any = self.bank.scalar(f"sigmoid_bias_{self.spec.sigmoid_bias:.9g}", self.spec.sigmoid_bias)
        else:
            seen = mb.cast(x=rows.visible[self.spec.window], dtype="fp32")
            count = mb.reduce_sum(x=seen, axes=[-1], keep_dims=True)
            bias = tiled(mb.cast(x=mb.mul(x=mb.log(x=count), y=np.float32(-1)), dtype="fp16"), self._group)
        weights = mb.mul(x=mb.sigmoid(x=mb.add(x=scores, y=bias)), y=tiled(visible, self._group))
        return mb.matmul(x=weights, y=values)

    def _on_grid(self, x: Var, part: str) -> Var:
        """Rounded to the int8 grid of AFM, by a scale that float16 does not hold."""
        scale = self.bank.constant(
            f"layers.{self.layer}.{part}",
            np.array([self.bank.layer_scalar(f"layers.{self.layer}.{part}")], np.float32),
        )
        steps = mb.round(x=mb.real_div(x=mb.cast(x=x, dtype="fp32"), y=scale))
        kept = mb.clip(x=steps, alpha=np.float32(-128), beta=np.float32(127))
        return mb.cast(x=mb.mul(x=kept, y=scale), dtype="fp16")


def _activation(spec: LayerSpec, x: Var) -> Var:
    if spec.activation == "silu":
        return mb.silu(x=x)
    if spec.activation == "relu":
        return mb.relu(x=x)
    return mb.gelu(x=x, mode="EXACT" if spec.activation == "gelu" else "TANH_APPROXIMATION")
