"""Apple's on-device foundation model (2025): the last layers read one earlier layer's keys and values.

Names and configuration as mlx-lm's afm7 has them; converters/tamm.py makes them from `tamm`'s state dict. Order inside
attention: rotate (interleaved pairs), then normalise each head, then round keys and values to the int8 grid.
"""

from __future__ import annotations

from dataclasses import replace

from russet.engine.errors import UnsupportedModelError
from russet.models.config import DecoderConfig, LayerSpec, Rope
from russet.models.families.base import Config, eos_ids, layer_count, positive

MAX_POSITIONS = 4096


def read(config: Config) -> DecoderConfig:
    hidden, heads = positive(config, "hidden_dim"), positive(config, "num_heads")
    count = layer_count(config, "num_layers")
    reuse = config.get("num_kv_reuse_layers", 0)
    if not 0 <= reuse < count:
        raise UnsupportedModelError(
            f"config.json has {reuse} KV-reuse layers of {count}; at least one layer must own its keys and values."
        )
    owner = LayerSpec(
        heads=heads,
        kv_heads=positive(config, "num_kv_heads"),
        head_dim=hidden // heads,
        ffn_dim=int(hidden * config.get("hidden_dim_scale_factor", 3.25)),
        rope=Rope(dims=hidden // heads, theta=float(config.get("rope_theta", 50000)), interleaved=True),
    )
    owners = count - reuse
    return DecoderConfig(
        family="afm7",
        hidden_dim=hidden,
        vocab_size=positive(config, "vocab_size"),
        layers=(owner,) * owners + (replace(owner, kv_source=owners - 1),) * reuse,
        max_positions=config.get("max_position_embeddings", MAX_POSITIONS),
        norm_eps=config.get("rms_norm_eps", 1e-5),
        qk_norm="after_rope",
        quantized_kv=True,
        eos_token_ids=eos_ids(config),
    )


def names(config: DecoderConfig) -> dict[str, str]:
    roles = {"embed": "model.embedding", "norm": "model.output_norm"}
    owners = config.last_writer + 1
    for i, layer in enumerate(config.layers):
        ours = f"layers.{i}"
        if layer.kv_source is None:
            stock = f"model.layers.{i}"
            roles[f"{ours}.qkv"] = f"{stock}.self_attn.qkv_proj"
            roles[f"{ours}.k_norm"] = f"{stock}.self_attn.k_norm"
            roles[f"{ours}.k_scale"] = f"{stock}.self_attn.quant_key_scale"
            roles[f"{ours}.v_scale"] = f"{stock}.self_attn.quant_value_scale"
        else:
            stock = f"model.kv_reuse_layers.{i - owners}"
            roles[f"{ours}.q"] = f"{stock}.self_attn.q_proj"
        roles[f"{ours}.q_norm"] = f"{stock}.self_attn.q_norm"
        roles[f"{ours}.o"] = f"{stock}.self_attn.out_proj"
        roles[f"{ours}.attn_norm"] = f"{stock}.input_layernorm"
        roles[f"{ours}.ffn_norm"] = f"{stock}.post_attention_layernorm"
        for part in ("gate", "up", "down"):
            roles[f"{ours}.{part}"] = f"{stock}.mlp.{part}_proj"
    return roles
