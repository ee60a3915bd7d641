"""How varied sampled text is: where rows begin to repeat themselves, and the share of different n-grams."""

from __future__ import annotations

import zlib

import numpy as np

PIECE = 256
"""Tokens that are looked at together: a loop that fills half of them is found, a refrain is not."""

STEP = 64

LEAST = 1.2
"""Bytes that zlib takes for a token of text that goes somewhere. Of books, textbooks, documentation and code 1.7 is the
median, and 5 % of their pieces take less than 1.1; SmolLM2's loops take 0.4 to 1.1."""


def before_loop(row: np.ndarray) -> int:
    """How many token ids of a row come before the first PIECE of them that say the same over and over; all, mostly."""
    ids = row.astype("<u2" if row.max() < 1 << 16 else "<u4")
    for start in range(0, max(1, len(ids) - PIECE + 1), STEP):
        piece = ids[start : start + PIECE]
        if len(zlib.compress(piece.tobytes())) < LEAST * len(piece):
            return start
    return len(row)


def distinct(rows: list[np.ndarray], n: int = 4) -> float:
    """The share of different n-grams among all n-grams of the rows, from 0 to 1."""
    hashes = [_hashes(row.astype(np.uint64), n) for row in rows if len(row) >= n]
    if not hashes:
        return 0.0
    joined = np.concatenate(hashes)
    return len(np.unique(joined)) / len(joined)


def _hashes(row: np.ndarray, n: int) -> np.ndarray:
    """A 64-bit number for each n-gram of a row."""
    total = np.zeros(len(row) - n + 1, dtype=np.uint64)
    for offset in range(n):
        total = (total + row[offset : len(row) - n + 1 + offset]) * np.uint64(0x9E3779B97F4A7C15)
        total ^= total >> np.uint64(29)
    return total
