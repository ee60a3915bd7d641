"""Llama 2 and 3, SmolLM2 and Mistral, in Hugging Face's naming; models/variant.py has what recipes change in them."""

from __future__ import annotations

from russet.models.config import DecoderConfig, LayerSpec
from russet.models.families.base import Config, activation, attention, eos_ids, layer_count, positive, refuse_unless
from russet.models.families.rope import read_rope
from russet.models.variant import apply_variant

MISTRAL_WINDOW = 4096
"""What transformers assumes where the key is absent; null means no window."""


def read(config: Config) -> DecoderConfig:
    hidden, heads = positive(config, "hidden_size"), positive(config, "num_attention_heads")
    head_dim = config.get("head_dim") or hidden // heads
    refuse_unless(config, "pretraining_tp", (1, None))
    max_positions = config.get("max_position_embeddings", 2048)
    kind, sigmoid_bias = attention(config, max_positions)
    layer = LayerSpec(
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=head_dim,
        ffn_dim=positive(config, "intermediate_size"),
        rope=read_rope(config, head_dim, theta=10000.0),
        activation=activation(config, "hidden_act"),
        window=config.get("sliding_window", MISTRAL_WINDOW) if config["model_type"] == "mistral" else None,
        attention=kind,
        sigmoid_bias=sigmoid_bias,
    )
    bias = bool(config.get("attention_bias", False))
    decoder = DecoderConfig(
        family=config["model_type"],
        hidden_dim=hidden,
        vocab_size=positive(config, "vocab_size"),
        layers=(layer,) * layer_count(config, "num_hidden_layers"),
        max_positions=max_positions,
        norm_eps=config.get("rms_norm_eps", 1e-6),
        qkv_bias=bias,
        out_bias=bias,
        ffn_bias=bool(config.get("mlp_bias", False)),
        tied_head=bool(config.get("tie_word_embeddings", False)),
        eos_token_ids=eos_ids(config),
    )
    return apply_variant(config, decoder)


def names(config: DecoderConfig) -> dict[str, str]:
    roles = {"embed": "model.embed_tokens", "norm": "model.norm"}
    if not config.tied_head:
        roles["head"] = "lm_head"
    for i, layer in enumerate(config.layers):
        ours, stock = f"layers.{i}", f"model.layers.{i}"
        for part in "qkvo" if layer.kv_source is None else "qo":
            roles[f"{ours}.{part}"] = f"{stock}.self_attn.{part}_proj"
        for part in ("gate", "up", "down"):
            roles[f"{ours}.{part}"] = f"{stock}.mlp.{part}_proj"
        roles[f"{ours}.attn_norm"] = f"{stock}.input_layernorm"
        roles[f"{ours}.ffn_norm"] = f"{stock}.post_attention_layernorm"
    return roles
