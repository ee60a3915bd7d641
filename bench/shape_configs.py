"""Well-known shapes as a checkpoint's config.json has them."""

from __future__ import annotations

from typing import Any


def _llama(hidden: int, layers: int, ffn: int, heads: int, kv_heads: int, vocab: int, tied: bool) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "intermediate_size": ffn,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": 1e-5,
        "vocab_size": vocab,
        "tie_word_embeddings": tied,
        "max_position_embeddings": 32768,
        "rope_theta": 10000.0,
    }


SHAPES: dict[str, dict[str, Any]] = {
    "smollm2-135m": _llama(576, 30, 1536, 9, 3, 49152, tied=True),
    "llama-2-7b": _llama(4096, 32, 11008, 32, 32, 32000, tied=False),
    "llama-3b": _llama(2048, 56, 6656, 16, 2, 153600, tied=True),
    "afm-3b": {
        "model_type": "afm7",
        "vocab_size": 153600,
        "hidden_dim": 2048,
        "num_layers": 56,
        "num_kv_reuse_layers": 21,
        "num_heads": 16,
        "num_kv_heads": 2,
        "hidden_dim_scale_factor": 3.25,
        "rope_theta": 500000,
        "max_position_embeddings": 32768,
    },
}
"""llama-3b is afm-3b without shared keys and values."""
