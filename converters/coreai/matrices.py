"""A model's matrices and vectors as Core AI constants: floating-point, or packed integers that the runtime expands.

Matrices are stored [in, out], as a product reads them: the runtime would turn [out, in] ones at every call, which for
one row takes thirty times as long as the product. A packed matrix keeps MLX's affine layout number for number,
w = scale * q + bias over groups along the input.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import coreai.authoring  # noqa: F401  before the dialect, which it is entangled with
import numpy as np
from coreai._compiler.dialects import coreai as ir
from coreai._compiler.dialects.coreai.constant import create_constant_attr
from coreai._compiler.ir import DenseElementsAttr, DenseResourceElementsAttr, IntegerAttr, IntegerType, RankedTensorType

from russet.converters.coreai import operations as ops
from russet.converters.coreai.operations import Value
from russet.converters.coreai.stored import Stored
from russet.engine.errors import WeightsError


@dataclass(frozen=True)
class Matrix:
    """Attributes of one matrix, shared by the functions that use it."""

    attributes: tuple[Any, ...]
    bias: Any | None = None

    def value(self) -> Value:
        """[in, out] in the compute type, in the graph that is being emitted."""
        parts = [ir.ConstantOp(value=attribute).result for attribute in self.attributes]
        return parts[0] if len(parts) == 1 else ir.blockwise_shift_scale(*parts)

    def __call__(self, x: Value) -> Value:
        """x [1, rows, in] times it, and the bias."""
        y = ops.matmul(x, self.value())
        return y if self.bias is None else ops.add(y, ir.ConstantOp(value=self.bias).result)

    def columns(self, tokens: Value) -> Value:
        """Of an embedding [hidden, vocab]: rows [1, n, hidden] of the token ids [1, n]."""
        table = self.value()
        shape = ops.vector([table.type.shape[0], ops.length(tokens, 1)])
        index = ir.broadcast_to(tokens, ir.cast(shape, IntegerType.get_unsigned(32)))
        found = ir.gather_along_axis(table, index, ops.constant(1, np.int32))
        return ir.expand_dims(ops.transpose(found, [1, 0]), [0])


def matrix(role: str, stored: Stored, dtype: type[np.floating[Any]], bias: np.ndarray | None = None) -> Matrix:
    """The constants for a matrix; `role` is for messages."""
    biases = None if bias is None else vector(role, bias, dtype)
    if isinstance(stored, np.ndarray):
        return Matrix((vector(role, stored.T, dtype),), biases)
    kind = IntegerType.get_unsigned(stored.bits)
    integers, scales, offsets = (x if stored.turned else x.T for x in (stored.integers, stored.scales, stored.biases))
    zeros = DenseElementsAttr.get_splat(RankedTensorType.get(scales.shape, kind), IntegerAttr.get(kind, 0))
    parts = (_integers(integers, stored.bits, kind), vector(role, scales, dtype), zeros, vector(role, offsets, dtype))
    return Matrix(parts, biases)


def vector(role: str, array: np.ndarray, dtype: type[np.floating[Any]]) -> Any:
    """The attribute of a constant in `dtype`; WeightsError for numbers that it does not hold."""
    with np.errstate(over="ignore"):
        numbers = np.ascontiguousarray(array, dtype=dtype)
    if not np.isfinite(numbers).all():
        name = np.dtype(dtype).name
        raise WeightsError(f"{role} has numbers that {name} does not hold; give --weights float32, or mend the model.")
    return create_constant_attr(numbers)


def _integers(integers: np.ndarray, bits: int, kind: Any) -> Any:
    """Packed to bytes, the first number in the lowest bits."""
    flat = np.ascontiguousarray(integers).reshape(-1, 8 // bits)
    packed = np.zeros(len(flat), dtype=np.uint8)
    for place in range(flat.shape[1]):
        packed |= flat[:, place] << (place * bits)
    return DenseResourceElementsAttr.get_from_buffer(packed, "packed", RankedTensorType.get(integers.shape, kind))  # pyright: ignore[reportArgumentType]
