"""MIL's number formats as numpy's; formats below a byte are unpacked into the smallest that holds them."""

from __future__ import annotations

import numpy as np

# DataType in MIL.proto.
FLOAT16, FLOAT32 = 10, 11

_WHOLE = {
    1: np.bool_,
    FLOAT16: np.float16,
    FLOAT32: np.float32,
    12: np.float64,
    21: np.int8,
    22: np.int16,
    23: np.int32,
    24: np.int64,
    31: np.uint8,
    32: np.uint16,
    33: np.uint32,
    34: np.uint64,
}
# DataType -> bits, signed.
_PACKED = {25: (4, True), 35: (4, False), 36: (2, False), 37: (1, False), 38: (6, False), 39: (3, False)}

# BlobDataType of a weight file -> DataType.
BLOB_TYPES = {1: 10, 2: 11, 3: 31, 4: 21, 6: 22, 7: 32, 8: 25, 9: 37, 10: 36, 11: 35, 12: 39, 13: 38, 14: 23, 15: 33}


def numpy_type(data_type: int) -> np.dtype:
    """The format that values of a DataType are kept in; KeyError for one that is not a number."""
    if data_type in _PACKED:
        return np.dtype(np.int8 if _PACKED[data_type][1] else np.uint8)
    return np.dtype(_WHOLE[data_type])


def from_bytes(raw: bytes | memoryview, data_type: int, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers as MIL stores them: little-endian, the first in the lowest bits of a byte."""
    count = int(np.prod(shape, dtype=np.int64))
    if data_type not in _PACKED:
        return np.frombuffer(raw, numpy_type(data_type), count=count).reshape(shape)
    bits, signed = _PACKED[data_type]
    return _unpack(np.frombuffer(raw, np.uint8), bits, signed, count).reshape(shape)


def _unpack(raw: np.ndarray, bits: int, signed: bool, count: int) -> np.ndarray:
    if 8 % bits == 0:
        shifts = np.arange(0, 8, bits, dtype=np.uint8)
        values = ((raw[:, None] >> shifts) & ((1 << bits) - 1)).reshape(-1)[:count]
    else:
        single = np.unpackbits(raw, bitorder="little")[: count * bits].reshape(count, bits)
        values = (single << np.arange(bits, dtype=np.uint8)).sum(axis=1, dtype=np.uint8)
    if not signed:
        return values
    return (values.astype(np.int8) ^ (1 << bits - 1)) - np.int8(1 << bits - 1)
