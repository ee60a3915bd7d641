"""Norms and attention as Core AI's composite operations: named, so that Apple's compiler can put its own kernels there.

A composite is a private graph that says what it stands for and, in its body, what it computes. Norms compute in
float32, where squares of 16-bit numbers do not overflow. Sigmoid attention, which Core AI has no name for, is plain
operations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import coreai.authoring  # noqa: F401  before the dialect, which it is entangled with
import numpy as np
from coreai._compiler.dialects import coreai as ir
from coreai._compiler.ir import Attribute, F32Type, InsertionPoint

from russet.converters.coreai import operations as ops
from russet.converters.coreai.operations import Value

HIDDEN = -1e4
"""Added to the score of a key that a query does not see; float16 holds it."""


class Composites:
    """The composites of one module, each emitted once for a kind of operands and called from wherever it is needed."""

    def __init__(self, module: Any) -> None:
        self._body = module._body
        self._known: dict[tuple[Any, ...], Any] = {}

    def rms_norm(self, x: Value, weight: Value, eps: float) -> Value:
        """x / rms(x) * weight over the last axis."""
        return self._call("rms_norm", {"input": x, "scale": weight}, {"axes": -1, "eps": float(eps)}, _rms_norm(eps))

    def attention(self, queries: Value, keys: Value, values: Value, scale: float, window: int | None) -> Value:
        """Causal attention; the queries [1, heads, rows, dim] are the last rows of [1, kv_heads, n, dim]."""
        attributes = {"is_causal": True, "scale": float(scale), "window_size": window or 0}
        inputs = {"query": queries, "key": keys, "value": values}
        return self._call("scaled_dot_product_attention", inputs, attributes, _attention(scale, window))

    def _call(
        self, name: str, inputs: dict[str, Value], attributes: dict[str, Any], body: Callable[..., Value]
    ) -> Value:
        key = (name, *(str(value.type) for value in inputs.values()), *attributes.values())
        if key not in self._known:
            graph = ir.GraphOp(
                f"{name}_{len(self._known)}",
                [value.type for value in inputs.values()],
                [],
                list(inputs),
                private=True,
                no_inline=True,
                composite_decl=_declaration(name, list(inputs), attributes),
                ip=InsertionPoint(self._body),
            )
            with graph.block:
                graph.outputs_spec = [("output", body(*graph.arguments))]
            self._known[key] = graph
        return self._known[key](*inputs.values())[0]


def _declaration(name: str, inputs: list[str], attributes: dict[str, Any]) -> Any:
    def text(value: Any) -> str:
        if isinstance(value, bool):
            return str(value).lower()
        return f"{value} : si64" if isinstance(value, int) else f"{value:.9e} : f32"

    operation = ", ".join(f"{key} = {text(value)}" for key, value in (attributes | {"version": 1}).items())
    names = ", ".join(f'"{name}"' for name in inputs)
    return Attribute.parse(
        f'#coreai.composite_declaration<"{name}" = {{input_names = [{names}], op_attrs = {{{operation}}}, '
        'output_names = ["output"]}>'
    )


def _rms_norm(eps: float) -> Callable[..., Value]:
    def body(x: Value, weight: Value) -> Value:
        wide = ir.cast(x, F32Type.get())
        mean = ir.reduce_mean(ops.multiply(wide, wide), [ops.rank(x) - 1])
        scaled = ops.multiply(wide, ir.rsqrt(ops.add(mean, ops.constant(eps))))
        return ops.multiply(ops.cast(scaled, x), weight)

    return body


def _attention(scale: float, window: int | None) -> Callable[..., Value]:
    def body(queries: Value, keys: Value, values: Value) -> Value:
        def weigh(scores: Value) -> Value:
            hidden = _hidden(ops.length(queries, 2), ops.length(keys, 2), window)
            masked = ops.add(scores, ops.multiply(ops.cast(hidden, queries), _scalar(HIDDEN, queries)))
            return ir.softmax(masked, ops.constant(3, np.int32))

        return _attend(queries, keys, values, scale, weigh)

    return body


def sigmoid_attention(
    queries: Value, keys: Value, values: Value, scale: float, window: int | None, bias: float | None
) -> Value:
    """sigmoid(scale Q K^T + b) V of arXiv 2409.04431, causal; b is `bias`, or -log of the keys that a query sees."""

    def weigh(scores: Value) -> Value:
        hidden = _hidden(ops.length(queries, 2), ops.length(keys, 2), window)
        seen = ops.subtract(ops.constant(1.0), ir.cast(hidden, F32Type.get()))
        wide = ir.cast(scores, F32Type.get())
        if bias is None:
            offset = ir.log(ir.reduce_sum(seen, [1]))
            wide = ops.subtract(wide, offset)
        else:
            wide = ops.add(wide, ops.constant(bias))
        return ops.cast(ops.multiply(ir.sigmoid(wide), seen), queries)

    return _attend(queries, keys, values, scale, weigh)


def _attend(queries: Value, keys: Value, values: Value, scale: float, weigh: Callable[[Value], Value]) -> Value:
    """Values mixed by what `weigh` makes of the scores [1, heads, rows, n]."""
    heads, kv_heads, dim = queries.type.shape[1], keys.type.shape[1], queries.type.shape[3]
    rows, count = ops.length(queries, 2), ops.length(keys, 2)
    many = ops.multiply(rows, ops.constant([heads // kv_heads], np.int32))
    # Query heads of one key head are rows of one product, so that keys are read once and never repeated.
    grouped = ops.reshape(ops.multiply(queries, _scalar(scale, queries)), [1, kv_heads, many, dim])
    scores = ops.reshape(ops.matmul(grouped, ops.transpose(keys, [0, 1, 3, 2])), [1, heads, rows, count])
    mixed = ops.matmul(ops.reshape(weigh(scores), [1, kv_heads, many, count]), values)
    return ops.reshape(mixed, [1, heads, rows, dim])


def _hidden(rows: Value, count: Value, window: int | None) -> Value:
    """[rows, count] of booleans: whether a key is hidden from a query."""
    first, end = ops.reshape(ops.subtract(count, rows), []), ops.reshape(count, [])
    one = ops.constant(1, np.int32)
    queries = ir.expand_dims(ir.range_(first, end, one), [1])
    keys = ir.expand_dims(ir.range_(ops.constant(0, np.int32), end, one), [0])
    hidden = ir.broadcasting_greater(keys, queries)
    if window is not None:
        horizon = ops.subtract(queries, ops.constant(window - 1, np.int32))
        hidden = ir.broadcasting_or(hidden, ir.broadcasting_greater(horizon, keys))
    return hidden


def _scalar(value: float, like: Value) -> Value:
    return ops.cast(ops.constant(value), like)
