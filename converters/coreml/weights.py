"""How a matrix is stored in a package: 16 bits, integers with scales, palettes, or balanced 2-bit weights unchanged.

Kind          operands of the operation that expands it                             bits a weight
float16       -                                                                     16
int8          int8, one float16 scale a row                                         8 + 16 / in
int4          int4, one float16 scale for 32 weights of a row                       4.5
palette4      uint4 indices, 16 float16 entries for 16 rows                         4 + 16 / in
palette2      uint2 indices, 4 float16 entries for 16 rows                          2 + 4 / in
balanced2     uint2 indices, 4 float16 entries for each group: its levels           2 + 64 / group
balanced2s    uint2 indices, the levels {-1.5, -0.5, 0.5, 1.5}, one scale a group   2 + 16 / group

The last two hold the same weights. The longer one is plain MIL for iOS 18; the operations of the shorter one are in an
order that coremltools keeps for iOS 26 only.
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
INDEX_BITS = {"palette4": 4, "palette2": 2, "balanced2": 2, "balanced2s": 2}


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
        return 4 if (self.kind, name) == ("int4", "data") else 8 * self.parts[name].dtype.itemsize


def encode(role: str, kind: str, weight: np.ndarray | Affine) -> Stored:
    """A float32 tensor or packed rows as `kind`; raises WeightsError for numbers that float16 cannot hold."""
    if kind in ("balanced2", "balanced2s"):
        assert not isinstance(weight, np.ndarray)
        return _balanced(role, kind, weight)
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
    """What `encode` will take, without encoding."""
    count = int(np.prod(shape))
    if kind in ("float16", "float32"):
        return count * (2 if kind == "float16" else 4)
    rows = shape[0]
    return {
        "int8": count + 2 * rows,
        "int4": count // 2 + 2 * count // BLOCK,
        "palette4": count // 2 + 2 * 16 * (rows // rows_in_group(rows)),
        "palette2": count // 4 + 2 * 4 * (rows // rows_in_group(rows)),
        "balanced2": count // 4 + (8 * count // group if group else 0),
        "balanced2s": count // 4 + (2 * count // group if group else 0) + 8,
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


def _balanced(role: str, kind: str, weight: Affine) -> Stored:
    packed, scales = np.array(weight.weight), np.array(weight.scales)
    shifts = np.arange(0, 32, 2, dtype=np.uint32)
    indices = ((packed[..., None] >> shifts) & 3).astype(np.uint8).reshape(packed.shape[0], -1)
    exact = scales.astype(np.float16)
    if not np.array_equal(exact.astype(np.float32), scales):
        raise WeightsError(
            f"The scales of {role} are no float16 numbers, so that its 2-bit weights cannot be kept exactly; convert "
            "the model with --dtype float16 first, or give --weights float16."
        )
    if kind == "balanced2s":
        return Stored(kind, {"indices": indices, "levels": LEVELS.reshape(1, 1, 4, 1), "scale": exact})
    return Stored(kind, {"indices": indices, "lut": (scales[..., None] * LEVELS).astype(np.float16)[..., None]})


def _expanded(weight: Affine) -> np.ndarray:
    import mlx.core as mx

    return np.array(weight.expand(mx.float32))


def _finite(role: str, dense: np.ndarray) -> np.ndarray:
    largest = float(np.abs(dense).max(initial=0.0))
    if not largest <= FLOAT16_MAX:
        found = "numbers above float16's largest, 65504" if np.isfinite(largest) else "values that are not finite"
        raise WeightsError(f"{role} holds {found}, so that Core ML cannot store it.")
    return dense
