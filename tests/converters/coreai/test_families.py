"""Every family of the decoder computes in Apple's runtime what it computes in MLX."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from russet.models.runtimes.coreai import CoreAIDecoder

from .conftest import every_row, last_rows, our_logits, token_ids

FAMILIES = [
    ("llama", {}),
    ("llama", {"hidden_act": "relu"}),
    ("llama", {"hidden_act": "gelu"}),
    ("llama", {"attention_kind": "sigmoid"}),
    ("llama", {"attention_kind": "sigmoid", "sigmoid_bias": "visible"}),
    ("llama-bias", {}),
    ("llama-head-dim", {}),
    ("llama-linear", {}),
    ("llama-llama3", {}),
    ("llama-tied", {}),
    ("llama-yarn", {}),
    ("mistral", {}),
    ("qwen2", {}),
    ("qwen3", {}),
    ("gemma3-scaled", {}),
    ("openelm", {}),
    ("afm", {}),
    ("llama", {"russet": {"kv_source": [None, None, 0]}}),
]


@pytest.mark.parametrize(("name", "changes"), FAMILIES, ids=lambda value: str(value) if value else "")
def test_logits_are_our_decoders(
    name: str, changes: dict[str, Any], variant: Callable[..., Path], opened: Callable[..., CoreAIDecoder]
) -> None:
    folder = variant(name, **changes)
    decoder = opened(folder, weights="float32")
    tokens = token_ids(decoder.vocab_size)
    wanted = our_logits(folder, tokens)
    rows = every_row(decoder, tokens)
    np.testing.assert_allclose(rows, wanted, atol=1e-4)
    np.testing.assert_array_equal(rows.argmax(-1), wanted.argmax(-1))
    for position, logits in last_rows(decoder, tokens).items():
        np.testing.assert_allclose(logits, wanted[position], atol=1e-4)


def test_a_prefix_is_kept_and_what_was_behind_it_is_not_seen(opened: Callable[..., CoreAIDecoder], variant) -> None:
    import mlx.core as mx

    folder = variant("gemma3")
    decoder = opened(folder, weights="float32")
    tokens = token_ids(decoder.vocab_size)
    cache = decoder.new_cache()
    decoder.extend(mx.array(tokens[None]), cache)
    assert cache.trim(17)
    other = np.concatenate([tokens[:17], tokens[:11]])
    logits = decoder.extend(mx.array(other[None, 17:]), cache)
    assert logits is not None and cache.next_position == 28
    np.testing.assert_allclose(np.array(logits[0, -1]), our_logits(folder, other)[-1], atol=1e-4)


def test_the_state_grows_and_keeps_its_rows(
    opened: Callable[..., CoreAIDecoder], variant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("russet.models.runtimes.coreai.GROWTH", 4)
    folder = variant("openelm")
    decoder = opened(folder, weights="float32", chunk=6)
    tokens = token_ids(decoder.vocab_size)
    assert decoder.new_cache().capacity == 4
    wanted = our_logits(folder, tokens)
    for position, logits in last_rows(decoder, tokens).items():
        np.testing.assert_allclose(logits, wanted[position], atol=1e-4)


def test_the_swift_layout_has_one_function(opened: Callable[..., CoreAIDecoder], variant) -> None:
    folder = variant("qwen2")
    decoder = opened(folder, weights="float32", layout="swift")
    tokens = token_ids(decoder.vocab_size)
    assert decoder._runner.functions == ["main"]
    wanted = our_logits(folder, tokens)
    for position, logits in last_rows(decoder, tokens).items():
        np.testing.assert_allclose(logits, wanted[position], atol=1e-4)
