"""Gemma 3 (text): local and global attention by turns, four norms a layer that multiply by 1 + weight."""

from __future__ import annotations

from dataclasses import replace

from russet.engine.errors import UnsupportedModelError
from russet.models.config import DecoderConfig, LayerSpec
from russet.models.families import llama
from russet.models.families.base import Config, activation, eos_ids, layer_count, positive, refuse_unless
from russet.models.families.rope import read_rope

# What transformers' Gemma3TextConfig assumes where a checkpoint is silent.
DEFAULTS = {
    "head_dim": 256,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-6,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "max_position_embeddings": 131072,
    "vocab_size": 262208,
}


def read(config: Config) -> DecoderConfig:
    config = {**DEFAULTS, **config}
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        refuse_unless(config, key, (None,))
    refuse_unless(config, "use_bidirectional_attention", (False, None))
    head_dim = positive(config, "head_dim")
    full = LayerSpec(
        heads=positive(config, "num_attention_heads"),
        kv_heads=positive(config, "num_key_value_heads"),
        head_dim=head_dim,
        ffn_dim=positive(config, "intermediate_size"),
        rope=read_rope(config, head_dim, theta=1_000_000.0, kind="full_attention"),
        activation=activation(config, "hidden_activation", default="gelu_pytorch_tanh"),
    )
    local = replace(full, window=positive(config, "sliding_window"), rope=_local_rope(config, head_dim))
    bias = bool(config.get("attention_bias", False))
    return DecoderConfig(
        family="gemma3_text",
        hidden_dim=positive(config, "hidden_size"),
        vocab_size=positive(config, "vocab_size"),
        layers=tuple(full if is_full else local for is_full in _full_layers(config)),
        max_positions=config["max_position_embeddings"],
        norm_eps=config["rms_norm_eps"],
        qk_norm="before_rope",
        qkv_bias=bias,
        out_bias=bias,
        post_norms=True,
        unit_offset_norm=True,
        attention_scale=config["query_pre_attn_scalar"] ** -0.5,
        embed_scale=config["hidden_size"] ** 0.5,
        tied_head=bool(config.get("tie_word_embeddings", True)),
        eos_token_ids=eos_ids(config),
    )


def names(config: DecoderConfig) -> dict[str, str]:
    roles = llama.names(config)
    for i in range(len(config.layers)):
        ours, stock = f"layers.{i}", f"model.layers.{i}"
        for part in "qk":
            roles[f"{ours}.{part}_norm"] = f"{stock}.self_attn.{part}_norm"
        roles[f"{ours}.post_attn_norm"] = f"{stock}.post_attention_layernorm"
        roles[f"{ours}.ffn_norm"] = f"{stock}.pre_feedforward_layernorm"
        roles[f"{ours}.post_ffn_norm"] = f"{stock}.post_feedforward_layernorm"
    return roles


def _full_layers(config: Config) -> list[bool]:
    count = layer_count(config, "num_hidden_layers")
    kinds = config.get("layer_types")
    if kinds:
        if len(kinds) != count or not set(kinds) <= {"full_attention", "sliding_attention"}:
            raise UnsupportedModelError(
                f"config.json has {len(kinds)} layer_types ({', '.join(sorted(set(map(str, kinds))))}) for {count} "
                "layers; one a layer is needed, full_attention or sliding_attention."
            )
        return [kind == "full_attention" for kind in kinds]
    pattern = config.get("sliding_window_pattern") or config.get("_sliding_window_pattern") or 6
    return [(i + 1) % pattern == 0 for i in range(count)]


def _local_rope(config: Config, head_dim: int):
    """Local layers have a base of their own, and the global layers' scaling does not reach them."""
    plain = {key: value for key, value in config.items() if key not in ("rope_theta", "rope_scaling")}
    return read_rope(plain, head_dim, theta=config.get("rope_local_base_freq", 10_000.0), kind="sliding_attention")
