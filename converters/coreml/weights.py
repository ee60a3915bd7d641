"""How a matrix is stored in a package: 16 bits, integers with scales, palettes, or packed weights as they are.

Kind       operands of the operation that expands it                                   bits a weight
float16    -                                                                           16
int8       int8, one float16 scale a row                                               8 + 16 / in
int4       int4, one float16 scale for 32 weights of a row                             4.5
palette4   uint4 indices, 16 float16 entries for 16 rows                               4 + 16 / in
palette2   uint2 indices, 4 float16 entries for 16 rows                                2 + 4 / in
affine8    MLX's 8-bit weights: int8, a float16 scale and offset a group               8 + 32 / group
affine4    MLX's 4-bit weights: int4, a float16 scale and offset a group               4 + 32 / group
table2     2-bit weights: uint2 indices, 4 float16 entries for a group or a row        2 + 64 / group
levels2    balanced 2-bit weights: uint2 indices, the levels {-1.5, -0.5, 0.5, 1.5},
           one float16 scale for a group or a row                                      2 + 16 / group

Balanced 2-bit weights are kept to the bit by both of the last kinds. The longer one is plain MIL for iOS 18; the
operations of the shorter one are in an order that coremltools keeps for iOS 26 only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from russet.converters.coreml.palettes import palettize, rows_in_group
from russet.engine.errors import WeightsError

if TYPE_CHECKING:
    from russet.models.linear import Affine

BLOCK = 32
FLOAT16_MAX = 65504.0
LEVELS = np.array([-1.5, -0.5, 0.5, 1.5], np.float16)
INDEX_BITS = {"palette4": 4, "palette2": 2, "table2": 2, "levels2": 2}
PACKED = {8: "affine8", 4: "affine4", 2: "table2"}
"""Bits of packed weights -> the kind that keeps them."""


@dataclass(frozen=True)
class Stored:
    """A tensor of a package: its kind and the operands by MIL's names, `val` for one that is dense.

    Sub-byte operands are uint8 or int8 here; `bits` says what they are packed to.
    """

    kind: str
    parts: Mapping[str, np.ndarray]

    @property
    def nbytes(self) -> int:
        return sum(self.bits(name) * part.size // 8 for name, part in self.parts.items())

    def bits(self, name: str) -> int:
        """Bits that one number of an operand takes."""
        if name == "indices":
            return INDEX_BITS[self.kind]
        return 4 if name == "data" and self.kind in ("int4", "affine4") else 8 * self.parts[name].dtype.itemsize


def encode(role: str, kind: str, weight: np.ndarray | Affine, group: int = 0, turned: bool = False) -> Stored:
    """A float32 tensor or packed rows as `kind`; raises WeightsError for numbers that float16 cannot hold.

    Packed rows have groups of `group` weights, or one (0); `turned` says that they are columns.
    """
    if kind in ("affine8", "affine4", "table2", "levels2"):
        assert not isinstance(weight, np.ndarray)
        return _affine(kind, weight) if kind.startswith("affine") else _two_bits(role, kind, weight, group, turned)
    dense = _finite(role, weight if isinstance(weight, np.ndarray) else _expanded(weight))
    if kind == "float32":
        return Stored(kind, {"val": dense})
    if kind == "float16":
        return Stored(kind, {"val": dense.astype(np.float16)})
    if kind == "int8":
        return Stored(kind, _integers(dense, dense.shape[1], 127))
    if kind == "int4":
        return Stored(kind, _integers(dense, BLOCK, 7))
    indices, palettes = palettize(dense, INDEX_BITS[kind])
    return Stored(kind, {"indices": indices, "lut": palettes[:, None, :, None]})


def predicted_bytes(kind: str, shape: tuple[int, ...], group: int = 0) -> int:
    """What `encode` will take, without encoding, for stored rows of this `shape`."""
    count = int(np.prod(shape))
    if kind in ("float16", "float32"):
        return count * (2 if kind == "float16" else 4)
    rows = shape[0]
    groups = count // group if group else rows
    return {
        "int8": count + 2 * rows,
        "int4": count // 2 + 2 * count // BLOCK,
        "palette4": count // 2 + 2 * 16 * (rows // rows_in_group(rows)),
        "palette2": count // 4 + 2 * 4 * (rows // rows_in_group(rows)),
        "affine8": count + 4 * groups,
        "affine4": count // 2 + 4 * groups,
        "table2": count // 4 + 8 * groups,
        "levels2": count // 4 + 2 * groups + 8,
    }[kind]


def is_balanced(weight: np.ndarray | Affine) -> bool:
    """Whether the levels of packed 2-bit rows are {-1.5, -0.5, 0.5, 1.5} times their scales, to the bit."""
    if isinstance(weight, np.ndarray) or weight.bits != 2:
        return False
    scales, biases = np.array(weight.scales), np.array(weight.biases)
    return bool((biases == np.float32(-1.5) * scales).all())


def _integers(dense: np.ndarray, block: int, largest: int) -> dict[str, np.ndarray]:
    """Symmetric rounding to -largest .. largest, one scale for `block` weights along the input."""
    groups = dense.reshape(dense.shape[0], -1, block)
    scale = np.maximum(np.abs(groups).max(-1) / largest, 2.0**-24).astype(np.float16)
    codes = np.clip(np.round(groups / scale.astype(np.float32)[..., None]), -largest - 1, largest)
    return {"data": codes.reshape(dense.shape).astype(np.int8), "scale": scale}


def _affine(kind: str, weight: Affine) -> Stored:
    """scale (code - offset); codes are moved to lie around 0, so that float16 holds the offset closely."""
    middle = 1 << weight.bits - 1
    scales, biases = np.array(weight.scales), np.array(weight.biases)
    offsets = np.where(scales != 0, -biases / np.where(scales != 0, scales, 1), 0) - middle
    data = (_codes(weight).astype(np.int16) - middle).astype(np.int8)
    return Stored(kind, {"data": data, "scale": scales.astype(np.float16), "offset": offsets.astype(np.float16)})


def _two_bits(role: str, kind: str, weight: Affine, group: int, turned: bool) -> Stored:
    indices, scales, biases = _codes(weight), np.array(weight.scales), np.array(weight.biases)
    exact = is_balanced(weight)
    if not group:
        scales, biases = scales[:, :1], biases[:, :1]
    if turned:
        indices, scales, biases = (np.ascontiguousarray(part.T) for part in (indices, scales, biases))
    levels = scales[..., None] * np.arange(4, dtype=np.float32) + biases[..., None]
    tables = levels.astype(np.float16)
    if exact and not (tables.astype(np.float32) == levels).all():
        raise WeightsError(
            f"The levels of {role} are no float16 numbers, so that its 2-bit weights cannot be kept exactly; give "
            "--weights float16."
        )
    if kind == "levels2":
        parts = {"levels": LEVELS.reshape(1, 1, 4, 1), "scale": scales.astype(np.float16)}
        return Stored(kind, {"indices": indices, **parts})
    return Stored(kind, {"indices": indices, "lut": tables[..., None]})


def _codes(weight: Affine) -> np.ndarray:
    """Packed codes as uint8 [rows, in]."""
    words = np.array(weight.weight)
    shifts = np.arange(0, 32, weight.bits, dtype=np.uint32)
    return ((words[..., None] >> shifts) & ((1 << weight.bits) - 1)).astype(np.uint8).reshape(words.shape[0], -1)


def _expanded(weight: Affine) -> np.ndarray:
    import mlx.core as mx

    return np.array(weight.expand(mx.float32))


def _finite(role: str, dense: np.ndarray) -> np.ndarray:
    largest = float(np.abs(dense).max(initial=0.0))
    if not largest <= FLOAT16_MAX:
        found = "numbers above float16's largest, 65504" if np.isfinite(largest) else "values that are not finite"
        raise WeightsError(f"{role} holds {found}, so that Core ML cannot store it.")
    return dense
