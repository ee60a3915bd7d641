"""The tiny models whose logits are pinned: one configuration a variant, spelled as public checkpoints spell it.

Sizes are small enough to commit, odd enough that a swapped dimension shows, and windows and trained lengths are shorter
than `LENGTH`, so that every option takes part in the result.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

LENGTH = 32
"""Tokens in the pinned sequence."""

Config = dict[str, Any]


@dataclass(frozen=True)
class Variant:
    """One golden folder. `spellings` are other `config.json` texts that mean the same model, by suffix."""

    name: str
    reference: Literal["transformers", "mlx_lm", "tamm"]
    config: Config
    spellings: dict[str, Config] = field(default_factory=dict)
    seed: int = 0


LLAMA: Config = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 72,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "float32",
}
LLAMA3_SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN_TUNED = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "attention_factor": 1.25,
    "beta_fast": 4.0,
    "beta_slow": 0.5,
}
LONG: Config = {**LLAMA, "head_dim": 16, "rope_theta": 500.0, "max_position_embeddings": 256}

QWEN2: Config = {
    **{key: value for key, value in LLAMA.items() if key not in ("attention_bias", "mlp_bias")},
    "model_type": "qwen2",
    "architectures": ["Qwen2ForCausalLM"],
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 8,
    "max_window_layers": 1,
    "use_sliding_window": False,
}
QWEN3: Config = {
    **QWEN2,
    "model_type": "qwen3",
    "architectures": ["Qwen3ForCausalLM"],
    "head_dim": 12,
    "attention_bias": False,
}
MISTRAL: Config = {
    **{key: value for key, value in LLAMA.items() if key not in ("attention_bias", "mlp_bias", "rope_scaling")},
    "model_type": "mistral",
    "architectures": ["MistralForCausalLM"],
    "sliding_window": 8,
}

GEMMA3: Config = {
    "model_type": "gemma3_text",
    "architectures": ["Gemma3ForCausalLM"],
    "vocab_size": 72,
    "hidden_size": 40,  # its square root is not a bfloat16 number, so rounding the embedding's scale shows
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "query_pre_attn_scalar": 24,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "rope_local_base_freq": 10000.0,
    "rope_scaling": None,
    "sliding_window": 8,
    "sliding_window_pattern": 3,
    "attention_bias": False,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "bos_token_id": 2,
    "eos_token_id": [1, 66],
    "pad_token_id": 0,
    "torch_dtype": "float32",
}
GEMMA3_SCALED: Config = {
    **GEMMA3,
    "rope_theta": 2000.0,
    "rope_local_base_freq": 300.0,
    "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
}


def by_layer_type(config: Config) -> Config:
    """Gemma 3 as transformers 4.5x wrote it: a list of layer types in place of the pattern."""
    pattern = config["sliding_window_pattern"]
    count = config["num_hidden_layers"]
    types = ["full_attention" if (i + 1) % pattern == 0 else "sliding_attention" for i in range(count)]
    kept = {key: value for key, value in config.items() if key != "sliding_window_pattern"}
    return {**kept, "layer_types": types}


OPENELM: Config = {
    "model_type": "openelm",
    "architectures": ["OpenELMForCausalLM"],
    "vocab_size": 72,
    "model_dim": 32,
    "head_dim": 8,
    "num_transformer_layers": 3,
    "num_query_heads": [4, 8, 4],
    "num_kv_heads": [2, 2, 1],
    "num_gqa_groups": 4,
    "ffn_multipliers": [0.5, 1.7, 2.6],
    "qkv_multipliers": [0.5, 1.0],
    "ffn_dim_divisor": 16,
    "ffn_with_glu": True,
    "activation_fn_name": "swish",
    "normalization_layer_name": "rms_norm",
    "normalize_qk_projections": True,
    "share_input_output_layers": True,
    "rope_freq_constant": 10000,
    "max_context_length": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
AFM: Config = {
    "model_type": "afm7",
    "vocab_size": 72,
    "hidden_dim": 32,
    "num_layers": 5,
    "num_kv_reuse_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "hidden_dim_scale_factor": 1.5,
    "rope_theta": 500000.0,
    "rms_norm_eps": 1e-05,
}

VARIANTS = (
    Variant("llama", "transformers", LLAMA),
    Variant("llama-tied", "transformers", {**LLAMA, "tie_word_embeddings": True, "rope_theta": 100000.0}),
    Variant("llama-bias", "transformers", {**LLAMA, "attention_bias": True, "mlp_bias": True}),
    Variant("llama-head-dim", "transformers", {**LLAMA, "head_dim": 12, "num_key_value_heads": 4}),
    Variant("llama-linear", "transformers", {**LONG, "rope_scaling": {"type": "linear", "factor": 4.0}}),
    Variant("llama-llama3", "transformers", {**LONG, "rope_scaling": LLAMA3_SCALING}),
    Variant("llama-yarn", "transformers", {**LONG, "rope_scaling": YARN_TUNED}),
    Variant("mistral", "transformers", MISTRAL),
    Variant("qwen2", "transformers", QWEN2),
    Variant("qwen2-tied", "transformers", {**QWEN2, "tie_word_embeddings": True, "num_hidden_layers": 2}),
    Variant("qwen3", "transformers", QWEN3),
    Variant(
        "qwen3-yarn",
        "transformers",
        {
            **QWEN3,
            "head_dim": 16,
            "rope_theta": 500.0,
            "max_position_embeddings": 128,
            "tie_word_embeddings": True,
            "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
        },
    ),
    Variant("gemma3", "transformers", GEMMA3, {"layer_types": by_layer_type(GEMMA3)}),
    Variant("gemma3-scaled", "transformers", GEMMA3_SCALED, {"layer_types": by_layer_type(GEMMA3_SCALED)}),
    Variant("openelm", "mlx_lm", OPENELM),
    Variant("afm", "tamm", AFM),
)
