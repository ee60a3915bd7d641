from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from russet.engine.likelihood import log_probabilities


@pytest.mark.parametrize("vocab", [3, 256, 49_152, 50_001])
def test_log_probabilities_are_those_of_exact_sums(vocab: int) -> None:
    rng = np.random.default_rng(0)
    logits, targets = rng.normal(0, 3, (20, vocab)).astype("f4"), rng.integers(vocab, size=20)
    logits[:, 0] = 18  # beside a sure token the others are small, but there are many
    exact = logits.astype("f8") - np.log(np.exp(logits.astype("f8")).sum(axis=-1, keepdims=True))
    found = np.array(log_probabilities(mx.array(logits), mx.array(targets)))
    assert np.allclose(found, exact[np.arange(20), targets], atol=1e-5)


def test_logits_of_16_bits_are_added_up_in_32() -> None:
    logits = mx.zeros((1, 4096), dtype=mx.float16)
    assert np.array(log_probabilities(logits, mx.array([7]))) == pytest.approx(-np.log(4096), abs=1e-5)
