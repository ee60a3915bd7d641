"""What the matrix-vector kernels share: how many rows a simdgroup takes, and the formats that they are checked with."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import product

import mlx.core as mx

from russet.kernels.packed import Format

SIMDGROUPS = 4
"""Simdgroups a threadgroup."""

TOLERANCE = {mx.float32: 2e-5}
"""Inputs and results are float32, and so is the arithmetic: what differs is the order of sums."""

# Rows in all -> rows a simdgroup: few while they have to fill the device, then more, to read the input less often.
_ROWS = ((8192, 8), (4096, 4), (1024, 2), (0, 1))


def rows_per_simdgroup(rows: int) -> int:
    return next(count for least, count in _ROWS if rows >= least)


def sample_rows(rows: int) -> int:
    """A small number of rows that are shared out in the same way."""
    return next(least for least, _ in _ROWS if rows >= least) + 8


def grid(units: int, each: int) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Grid and threadgroup in threads, for `units` results of which a simdgroup makes `each`."""
    threads = 32 * SIMDGROUPS
    return (-(-units // (each * SIMDGROUPS)) * threads, 1, 1), (threads, 1, 1)


def float_bits(value: float) -> int:
    """A float32 as the integer of the same bits, for template arguments."""
    return struct.unpack("<i", struct.pack("<f", value))[0]


def example_formats() -> Iterator[tuple[Format, mx.Dtype]]:
    """Every packing, each with the types that its scales or weights come in."""
    for dtype in (mx.float16, mx.bfloat16, mx.float32):
        yield Format(8 * dtype.size, 0, False), dtype
        for bits, group in product((2, 4, 8), (32, 64, 128)):
            yield Format(bits, group, False), dtype
        for group in (0, 64, 128):
            yield Format(2, group, True), dtype
