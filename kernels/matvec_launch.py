"""What the matrix-vector kernels share: how many rows a simdgroup takes, and how exact they are."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import mlx.core as mx

from russet.kernels.backend import Backend

TOLERANCE = {mx.float32: 2e-5}
"""Inputs and results are float32, and so is the arithmetic: what differs is the order of sums."""

# Rows in all -> rows a simdgroup: few while they have to fill the device, then more, to read the input less often.
_ROWS = ((4096, 4), (1024, 2), (0, 1))

_STAGED = 4096
"""Numbers of the input that wait at once on CUDA; half of a threadgroup's memory."""


@dataclass(frozen=True, slots=True)
class Shares:
    """How rows are shared out: rows a simdgroup, simdgroups a threadgroup, and blocks of the input at once."""

    rows: int
    simdgroups: int
    stages: int

    def grid(self, units: int, each: int) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        """Grid and threadgroup in threads, for `units` results of which a simdgroup makes `each`."""
        threads = 32 * self.simdgroups
        return (-(-units // (each * self.simdgroups)) * threads, 1, 1), (threads, 1, 1)


def shares(target: Backend, rows: int, bits: int) -> Shares:
    """How `rows` rows of weights are shared out.

    On an H100 few rows and large threadgroups, which wait for each other once in 4096 numbers, take 8 to 27 % less
    time than what Metal gets, where threadgroup memory would keep threadgroups from running side by side.
    """
    if target == "cuda":
        return Shares(2, 8, _STAGED // (32 * chunk(bits)))
    return Shares(next(count for least, count in _ROWS if rows >= least), 4, 1)


def chunk(bits: int) -> int:
    """Weights that a lane takes at once: `packing` in src/matvec.h."""
    return {32: 8, 16: 16}.get(bits, 32)


def sample_rows(rows: int) -> int:
    """A small number of rows that are shared out in the same way."""
    return next(least for least, _ in _ROWS if rows >= least) + 8


def float_bits(value: float) -> int:
    """A float32 as the integer of the same bits, for template arguments."""
    return struct.unpack("<i", struct.pack("<f", value))[0]
