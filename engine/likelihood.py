"""Log probabilities of tokens that are known, out of logits."""

from __future__ import annotations

import mlx.core as mx


def log_probabilities(logits: mx.array, targets: mx.array) -> mx.array:
    """log p in nats of `targets` [rows] under `logits` [rows, vocab]: float32 [rows]."""
    logits = logits.astype(mx.float32)
    wanted = mx.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
    return wanted - mx.logsumexp(logits, axis=-1)
