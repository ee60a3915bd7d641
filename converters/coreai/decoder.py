"""Emit the decoder that a `DecoderConfig` describes as a Core AI function, without tracing anything.

The functions' inputs, states and output have the names and shapes that the language-model runner of Apple's
coreai-models calls (python/src/coreai_models/models/base.py there): tokens [1, rows], positions [1, end], two states
[slots, 1, kv_heads, capacity, head_dim] of any capacity. What is at `end` and behind it in the state is never read.
"""

from __future__ import annotations

import math
from typing import Any

import coreai.authoring  # noqa: F401  before the dialect, which it is entangled with
import numpy as np
from coreai._compiler.dialects import coreai as ir
from coreai._compiler.ir import ArrayAttr, DictAttr, F32Type, StringAttr
from coreai.authoring import Module, TensorSpec

from russet.converters.coreai import operations as ops
from russet.converters.coreai.composites import Composites, sigmoid_attention
from russet.converters.coreai.operations import Value
from russet.converters.coreai.states import Gathered, State, Written, slots, state_shape
from russet.converters.coreai.tensors import LayerTensors, Tensors
from russet.models.config import LayerSpec, Rope
from russet.models.rope import inverse_frequencies
from russet.models.runtimes import coreai_bundle as names

INPUTS = (names.TOKENS, names.POSITIONS)
STATES = (names.KEYS, names.VALUES)

Rotation = tuple[Value, Value]


class Emitter:
    """Emits functions of one decoder into `module`; they share tensors and composites."""

    def __init__(self, module: Module, tensors: Tensors) -> None:
        self.config, self.tensors, self.dtype = tensors.config, tensors, tensors.dtype
        self._composites = Composites(module)
        self._carried = tensors.carried
        self._slots = slots(self.config)

    def function(self, name: str, last_only: bool) -> None:
        """Emit one function: logits [1, rows, vocab] with a state that is written layer by layer, or with `last_only`
        [1, 1, vocab] of the last row with a state that is written once.

        With `last_only` the layers after the last one that writes the state, and that one from its attention on, see
        one row.
        """
        state = TensorSpec(state_shape(self.config, -1), self.dtype)._to_mlir_type()
        ids = TensorSpec([1, -1], np.int32)._to_mlir_type()
        graph = ir.GraphOp(name, [ids, ids, state, state], [], [*INPUTS, *STATES])
        with graph.block:
            logits, states = self._forward(graph.arguments, last_only)
            graph.outputs_spec = [(names.LOGITS, logits), *zip(STATES, states, strict=True)]
        # The output of a state's name is its new value, which the compiler writes into it.
        attributes = {name: {"coreai.name": StringAttr.get(name)} for name in (*INPUTS, *STATES)}
        for name in STATES:
            attributes[name]["MutableBuffers.buffer_mutation"] = StringAttr.get(name)
        graph.arg_attrs = ArrayAttr.get([DictAttr.get(given) for given in attributes.values()])

    def _forward(self, arguments: list[Value], last_only: bool) -> tuple[Value, tuple[Value, Value]]:
        tokens, positions, keys, values = arguments
        end = ops.length(positions, 1)
        start = ops.subtract(end, ops.length(tokens, 1))
        at = ops.reshape(ops.part(positions, 1, start, ops.END), [-1, 1])
        rotations = {rope: self._rotation(rope, at) for rope in {layer.rope for layer in self.config.layers}}
        h = self.tensors.embed.columns(tokens)
        if (scale := self.config.embed_scale * self._carried) != 1.0:
            h = ops.multiply(h, self._number(scale))
        state: State = Written((keys, values), start, end)
        if last_only:
            state = Gathered((keys, values), start, end, state_shape(self.config, -1))
        for i, spec in enumerate(self.config.layers):
            last = last_only and i == self.config.last_writer
            h = _Layer(self, i).emit(h, rotations[spec.rope], state, last)
            if last:
                rotations = {rope: (ops.last_row(c, 0), ops.last_row(s, 0)) for rope, (c, s) in rotations.items()}
        return self.tensors.head(self.norm(h, self.tensors.norm, carried=True)), state.final()

    def norm(self, x: Value, weight: Any, carried: bool) -> Value:
        """The norm of rows, or with `carried` of the residual stream, whose square is smaller by the factor's."""
        eps = self.config.norm_eps * (self._carried**2 if carried else 1)
        return self._composites.rms_norm(x, ir.ConstantOp(value=weight).result, eps)

    def attention(self, spec: LayerSpec, queries: Value, keys: Value, values: Value) -> Value:
        scale = self.config.attention_scale or spec.head_dim**-0.5
        if spec.attention == "sigmoid":
            return sigmoid_attention(queries, keys, values, scale, spec.window, spec.sigmoid_bias)
        return self._composites.attention(queries, keys, values, scale, spec.window)

    def slot(self, layer: int) -> int:
        return self._slots[layer]

    def _rotation(self, rope: Rope, positions: Value) -> Rotation:
        """Cosines and sines [rows, dims / 2] at positions [rows, 1], computed in float32."""
        inverse = ops.constant(inverse_frequencies(rope)[None])
        angles = ops.multiply(ir.cast(positions, F32Type.get()), inverse)
        amplitude = ops.constant(rope.scaling.attention_factor if rope.scaling else 1.0)
        cos, sin = ops.multiply(ir.cos(angles), amplitude), ops.multiply(ir.sin(angles), amplitude)
        like = self._number(1.0)
        return ops.cast(cos, like), ops.cast(sin, like)

    def _number(self, value: float) -> Value:
        return ops.constant(value, self.dtype)


class _Layer:
    """One layer of the function that is being emitted."""

    def __init__(self, emitter: Emitter, index: int) -> None:
        self.emitter, self.config = emitter, emitter.config
        self.spec, self.slot = self.config.layers[index], emitter.slot(index)
        self.tensors: LayerTensors = emitter.tensors.layers[index]

    def emit(self, h: Value, rotation: Rotation, state: State, last: bool) -> Value:
        """Rows [1, rows, hidden] through attention and FFN; with `last`, only the last one after keys are stored."""
        queries = self._project(self._norm("attn_norm", h), rotation, state)
        if last:
            h, queries = ops.last_row(h, 1), ops.last_row(queries, 2)
        mixed = self.emitter.attention(self.spec, queries, *state.read(self.slot, self.spec))
        mixed = ops.reshape(ops.transpose(mixed, [0, 2, 1, 3]), [1, -1, self.spec.heads * self.spec.head_dim])
        h = ops.add(h, self._norm("post_attn_norm", self.tensors.out(mixed)))
        gate, up = self.tensors.gate_up(self._norm("ffn_norm", h))
        ffn = self.tensors.down(ops.multiply(_activation(self.spec.activation, gate), up))
        return ops.add(h, self._norm("post_ffn_norm", ffn))

    def _norm(self, name: str, x: Value) -> Value:
        """The norm of a name, where the family has it."""
        weight = self.tensors.norms.get(name)
        return x if weight is None else self.emitter.norm(x, weight, carried=name in ("attn_norm", "ffn_norm"))

    def _project(self, x: Value, rotation: Rotation, state: State) -> Value:
        """Queries [1, heads, rows, head_dim], after storing the rows' keys and values where the layer has its own."""
        spec = self.spec

        def heads(flat: Value, count: int) -> Value:
            return ops.transpose(ops.reshape(flat, [1, -1, count, spec.head_dim]), [0, 2, 1, 3])

        queries, *keys_values = self.tensors.project(x)
        if keys_values:
            keys, values = (heads(flat, spec.kv_heads) for flat in keys_values)
            keys = self._on_grid(self._turn(keys, "k_norm", rotation), 0)
            state.store(self.slot, spec, (keys, self._on_grid(values, 1)))
        return self._turn(heads(queries, spec.heads), "q_norm", rotation)

    def _turn(self, x: Value, name: str, rotation: Rotation) -> Value:
        if self.config.qk_norm == "after_rope":
            return self._norm(name, _rotate(x, rotation, self.spec.rope))
        return _rotate(self._norm(name, x), rotation, self.spec.rope)

    def _on_grid(self, x: Value, which: int) -> Value:
        """AFM's int8 grid, one scale a layer; the values stay floating-point numbers."""
        if self.tensors.grid is None:
            return x
        scale = ops.constant(self.tensors.grid[which])
        steps = ir.round_(ir.broadcasting_divide(ir.cast(x, F32Type.get()), scale))
        steps = ir.broadcasting_maximum(ir.broadcasting_minimum(steps, ops.constant(127)), ops.constant(-128))
        return ops.cast(ops.multiply(steps, scale), x)


def _rotate(x: Value, rotation: Rotation, rope: Rope) -> Value:
    """Queries or keys [1, heads, rows, head_dim] with their first `dims` features turned."""
    cos, sin = rotation
    heads, width = x.type.shape[1], x.type.shape[3]
    turned = x if rope.dims == width else ops.part(x, 3, 0, rope.dims)
    half, rows = rope.dims // 2, ops.length(x, 2)
    if rope.interleaved:
        pairs = ops.reshape(turned, [1, heads, rows, half, 2])
        a, b = (ops.reshape(ops.part(pairs, 4, k, k + 1), [1, heads, rows, half]) for k in (0, 1))
    else:
        a, b = ops.part(turned, 3, 0, half), ops.part(turned, 3, half, rope.dims)
    new = (
        ops.subtract(ops.multiply(a, cos), ops.multiply(b, sin)),
        ops.add(ops.multiply(a, sin), ops.multiply(b, cos)),
    )
    if rope.interleaved:
        turned = ops.reshape(ops.concat(4, [ir.expand_dims(part, [4]) for part in new]), [1, heads, rows, rope.dims])
    else:
        turned = ops.concat(3, new)
    return turned if rope.dims == width else ops.concat(3, [turned, ops.part(x, 3, rope.dims, width)])


def _activation(name: str, x: Value) -> Value:
    if name == "silu":
        return ir.silu(x)
    if name == "relu":
        return ir.relu(x)

    def number(value: float) -> Value:
        return ops.cast(ops.constant(value), x)

    if name == "gelu":
        inner = ir.erf(ops.multiply(x, number(math.sqrt(0.5))))
    else:
        cube = ops.multiply(ops.multiply(x, x), ops.multiply(x, number(0.044715)))
        inner = ir.tanh(ops.multiply(ops.add(x, cube), number(math.sqrt(2 / math.pi))))
    return ops.multiply(ops.multiply(x, number(0.5)), ops.add(inner, number(1.0)))
