"""Core AI's operations as the decoder uses them; a graph is emitted by calling them inside its block.

They come from `coreai._compiler`, as Apple's own tutorials do it (coreai-core 1.0.0b3): the public module has no names
yet for state. Vectors of indices are si32, permutations ui32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import coreai.authoring  # noqa: F401  before the dialect, which it is entangled with
import numpy as np
from coreai._compiler.dialects import coreai as ir
from coreai._compiler.ir import IntegerType, RankedTensorType

Value = Any
Index = int | Value
"""A known number, or a si32 vector of one element."""

END = 2**31 - 1
"""As the end of a slice: the last element."""


def constant(array: Any, dtype: Any = np.float32) -> Value:
    """A small constant; scalars have no axes."""
    return ir.constant(np.array(array, dtype=dtype))


def vector(parts: Sequence[Index]) -> Value:
    """Indices or lengths, one a part."""
    if all(isinstance(part, int) for part in parts):
        return ir.constant(np.array(parts, dtype=np.int32))
    return ir.concat(0, [ir.constant(np.array([p], np.int32)) if isinstance(p, int) else p for p in parts])


def rank(x: Value) -> int:
    return len(x.type.shape)


def length(x: Value, axis: int) -> Value:
    """How long an axis is when the graph runs."""
    shape = ir.cast(ir.get_shape(x), IntegerType.get_signed(32))
    return ir.slice_(shape, [axis], [axis + 1], [1])


def part(x: Value, axis: int, start: Index, end: Index) -> Value:
    """A range of one axis."""
    starts: list[Index] = [0] * rank(x)
    ends: list[Index] = [END] * rank(x)
    starts[axis], ends[axis] = start, end
    shape: list[Index] = [size if size >= 0 else None for size in x.type.shape]
    shape[axis] = end - start if isinstance(start, int) and isinstance(end, int) and end != END else None
    return block(x, starts, ends, shape)


def block(x: Value, starts: Sequence[Index], ends: Sequence[Index], shape: Sequence[Index | None]) -> Value:
    """A range of every axis; `shape` is the result's, as far as it is known."""
    operands = (vector(starts), vector(ends), vector([1] * rank(x)))
    return ir.SliceOp(x, *operands, results=[_kind(shape, x)]).result


def last_row(x: Value, axis: int) -> Value:
    starts: list[Index] = [0] * rank(x)
    starts[axis] = -1
    shape = [1 if k == axis else size if size >= 0 else None for k, size in enumerate(x.type.shape)]
    return block(x, starts, [END] * rank(x), shape)


def reshape(x: Value, shape: Sequence[Index]) -> Value:
    """The numbers in another shape; -1 is what remains."""
    if not shape:
        return ir.reshape(x, np.zeros(0, dtype=np.uint32))
    return ir.ReshapeOp(x, vector(shape), results=[_kind(shape, x)]).result


def _kind(shape: Sequence[Index | None], like: Value) -> Any:
    """A tensor type, dynamic where the shape is not a number."""
    dynamic = RankedTensorType.get_dynamic_size()
    sizes = [size if isinstance(size, int) and size >= 0 else dynamic for size in shape]
    return RankedTensorType.get(sizes, like.type.element_type)


def transpose(x: Value, axes: Sequence[int]) -> Value:
    return ir.transpose(x, np.array(axes, dtype=np.uint32))


def concat(axis: int, parts: Sequence[Value]) -> Value:
    return ir.concat(axis, list(parts))


def cast(x: Value, like: Value) -> Value:
    return ir.cast(x, like.type.element_type)


def add(a: Value, b: Value) -> Value:
    return ir.broadcasting_add(a, b)


def subtract(a: Value, b: Value) -> Value:
    return ir.broadcasting_sub(a, b)


def multiply(a: Value, b: Value) -> Value:
    return ir.broadcasting_mul(a, b)


def matmul(a: Value, b: Value) -> Value:
    return ir.broadcasting_batch_matmul(a, b)


def zeros(shape: Sequence[Index], like: Value) -> Value:
    """A tensor of zeros, of the type of `like`."""
    zero = ir.expand_dims(cast(constant(0.0), like), list(range(len(shape))))
    wide = ir.broadcast_to(zero, ir.cast(vector(shape), IntegerType.get_unsigned(32)))
    return reshape(wide, shape)
