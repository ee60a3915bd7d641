"""How varied sampled text is: rows that repeat themselves, and the share of n-grams that are met for the first time."""

from __future__ import annotations

import zlib

import numpy as np

PIECE = 256
"""Tokens that are looked at together: a loop that fills half of them is found, a refrain is not."""

LEAST = 1.0
"""Bytes that zlib takes for a token of text that goes somewhere. Of windows of books, textbooks, documentation and code
1 to 5 % are below it, of their prose hardly one; SmolLM2's loops take 0.4 to 0.8."""


def loops(row: np.ndarray) -> bool:
    """Whether a row of token ids says the same over and over somewhere."""
    ids = row.astype("<u2" if row.max() < 1 << 16 else "<u4")
    pieces = [ids[start : start + PIECE] for start in range(0, len(ids), PIECE)]
    return any(len(zlib.compress(p.tobytes())) < LEAST * len(p) for p in pieces if len(p) == PIECE or p is pieces[0])


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
