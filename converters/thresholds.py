"""Thresholds for an FFN's activations from running text: what share of |act(gate)| lies below which value, by layer.

CATS (Lee et al. 2024, arXiv 2404.08763) cuts the activated gate by such a threshold; the other projections of a cut
neuron need not be read. What is cut changes the model's output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np

from russet.engine.encoding import check_ids
from russet.engine.errors import InvalidOptionError, WeightsError
from russet.models.activations import gated

if TYPE_CHECKING:
    from russet.models.decoder import Block, Decoder

WINDOW = 512
"""Tokens that are run together; each window starts anew."""
LEAST_TOKENS = 32

# The bits of a float16 from 0 to infinity count up with its value: they are the bins of an exact histogram.
_BINS = 0x7C01


def calibrate(decoder: Decoder, tokens: Sequence[int], sparsity: float) -> list[float]:
    """One threshold a layer, such that the share `sparsity` of its activations on `tokens` is not above it.

    The first token of each window is left out: its activations are unlike all others'. Values are float16's. Raises
    InvalidOptionError for a share that is none, fewer than 32 tokens, and ids that the model has no row for, and
    WeightsError for damaged weights.
    """
    if not 0 < sparsity < 1:
        raise InvalidOptionError(f"The sparsity is {sparsity}: it must be between 0 and 1, as in 0.5.")
    if len(tokens) < LEAST_TOKENS:
        raise InvalidOptionError(
            f"The text has {len(tokens)} tokens, and calibration takes {LEAST_TOKENS} or more: give a longer text."
        )
    check_ids(tokens, decoder.config.vocab_size)
    counts = np.zeros((len(decoder.blocks), _BINS), np.int64)
    with _watched(decoder.blocks, counts):
        for start in range(0, len(tokens), WINDOW):
            window = tokens[start : start + WINDOW]
            if len(window) > 1:
                mx.eval(decoder.extend(mx.array([window]), decoder.new_cache(), logits=len(window)))
    return [_quantile(row, sparsity) for row in counts]


@contextmanager
def _watched(blocks: Sequence[Block], counts: np.ndarray) -> Iterator[None]:
    """Let each block's gate count its activations into a row of `counts`."""
    gates = [block.gate for block in blocks]
    try:
        for block, row in zip(blocks, counts, strict=True):
            block.gate = _counting(block, row)
        yield
    finally:
        for block, gate in zip(blocks, gates, strict=True):
            block.gate = gate


def _counting(block: Block, row: np.ndarray) -> Callable[[mx.array, mx.array], mx.array]:
    gate, act = block.gate, gated(block.spec.activation, compiled=False)

    def counting(x: mx.array, up: mx.array) -> mx.array:
        size = mx.abs(act(x[:, 1:], mx.ones((1,), dtype=x.dtype))).astype(mx.float16)
        found = np.bincount(np.array(size.view(mx.uint16)).reshape(-1), minlength=_BINS)
        if len(found) > _BINS:
            raise WeightsError("The model's activations are not numbers: its weights are damaged; convert it anew.")
        row[:] += found
        return gate(x, up)

    return counting


def _quantile(counts: np.ndarray, share: float) -> float:
    """The least value that at least `share` of the counted ones do not exceed."""
    at = np.searchsorted(np.cumsum(counts), share * counts.sum())
    return float(np.array([at], np.uint16).view(np.float16)[0])
