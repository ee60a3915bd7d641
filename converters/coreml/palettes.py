"""Palettes: the few values that a group of rows is rounded to, by k-means in one dimension (Lloyd 1982)."""

from __future__ import annotations

import math

import numpy as np

GROUP_ROWS = 16
"""Rows that share a palette: per grouped channel, in Core ML's words."""
_ROUNDS = 40


def rows_in_group(rows: int) -> int:
    """The most rows up to `GROUP_ROWS` that divide a matrix evenly."""
    return math.gcd(rows, GROUP_ROWS)


def palettize(weight: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices uint8 [out, in] and palettes float16 [groups, 2**bits], ascending, for float32 weights [out, in]."""
    groups = weight.reshape(weight.shape[0] // rows_in_group(weight.shape[0]), -1)
    palettes = np.stack([_centres(np.sort(group), 1 << bits) for group in groups]).astype(np.float16)
    edges = (palettes[:, 1:].astype(np.float32) + palettes[:, :-1].astype(np.float32)) / 2
    indices = [np.searchsorted(edge, group).astype(np.uint8) for edge, group in zip(edges, groups, strict=True)]
    return np.stack(indices).reshape(weight.shape), palettes


def _centres(ordered: np.ndarray, count: int) -> np.ndarray:
    """The means of `count` runs of ascending values, moved until no value is nearer to another run's."""
    sums = np.concatenate([[0.0], np.cumsum(ordered, dtype=np.float64)])
    ends = np.linspace(0, len(ordered), count + 1).round().astype(np.int64)
    centres = np.zeros(count)
    for _ in range(_ROUNDS):
        sizes = np.diff(ends)
        centres = np.where(sizes > 0, np.diff(sums[ends]) / np.maximum(sizes, 1), centres)
        centres.sort()
        edges = (centres[1:] + centres[:-1]) / 2
        moved = np.concatenate([[0], np.searchsorted(ordered, edges), [len(ordered)]])
        if np.array_equal(moved, ends):
            break
        ends = moved
    return centres
