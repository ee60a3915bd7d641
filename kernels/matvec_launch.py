"""What the matrix-vector kernels share: how many rows a simdgroup takes, and how exact they are."""

from __future__ import annotations

import struct

import mlx.core as mx

SIMDGROUPS = 4
"""Simdgroups a threadgroup."""

TOLERANCE = {mx.float32: 2e-5}
"""Inputs and results are float32, and so is the arithmetic: what differs is the order of sums."""

# Rows in all -> rows a simdgroup: few while they have to fill the device, then more, to read the input less often.
_ROWS = ((4096, 4), (1024, 2), (0, 1))


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
