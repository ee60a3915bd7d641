"""OpenELM: heads and FFN widths that grow with depth, fused projections, norms on queries and keys.

Names and configuration as Hugging Face's and mlx-lm's OpenELM have them (corenet's naming is converted to it).
"""

from __future__ import annotations

from russet.engine.errors import UnsupportedModelError
from russet.models.config import DecoderConfig, LayerSpec, Rope
from russet.models.families.base import Config, eos_ids, layer_count, positive, refuse_unless, require


def make_divisible(value: float, divisor: int) -> int:
    """`value` rounded to a multiple of `divisor`, at least `divisor` and never more than 10 % below `value`."""
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


def read(config: Config) -> DecoderConfig:
    for key, value in (
        ("ffn_with_glu", True),
        ("share_input_output_layers", True),
        ("activation_fn_name", "swish"),
    ):
        refuse_unless(config, key, (value,))
    hidden, head_dim = positive(config, "model_dim"), positive(config, "head_dim")
    count = layer_count(config, "num_transformer_layers")
    per_layer = [require(config, key, list) for key in ("num_query_heads", "num_kv_heads", "ffn_multipliers")]
    if any(len(values) != count for values in per_layer):
        raise UnsupportedModelError(
            f"config.json lists heads or FFN multipliers for other than its {count} layers; one a layer is needed."
        )
    rope = Rope(dims=head_dim, theta=float(config.get("rope_freq_constant", 10000)))
    layers = tuple(
        LayerSpec(
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            ffn_dim=make_divisible(multiplier * hidden, config.get("ffn_dim_divisor", 256)),
            rope=rope,
        )
        for heads, kv_heads, multiplier in zip(*per_layer, strict=True)
    )
    return DecoderConfig(
        family="openelm",
        hidden_dim=hidden,
        vocab_size=positive(config, "vocab_size"),
        layers=layers,
        max_positions=config.get("max_context_length", 2048),
        norm_eps=config.get("rms_norm_eps", 1e-6),
        qk_norm="before_rope" if config.get("normalize_qk_projections", True) else "none",
        eos_token_ids=eos_ids(config),
    )


def names(config: DecoderConfig) -> dict[str, str]:
    roles = {"embed": "transformer.token_embeddings", "norm": "transformer.norm"}
    for i in range(len(config.layers)):
        ours, stock = f"layers.{i}", f"transformer.layers.{i}"
        roles[f"{ours}.attn_norm"] = f"{stock}.attn_norm"
        roles[f"{ours}.qkv"] = f"{stock}.attn.qkv_proj"
        roles[f"{ours}.o"] = f"{stock}.attn.out_proj"
        roles[f"{ours}.ffn_norm"] = f"{stock}.ffn_norm"
        roles[f"{ours}.gate_up"] = f"{stock}.ffn.proj_1"
        roles[f"{ours}.down"] = f"{stock}.ffn.proj_2"
        if config.qk_norm != "none":
            roles[f"{ours}.q_norm"] = f"{stock}.attn.q_norm"
            roles[f"{ours}.k_norm"] = f"{stock}.attn.k_norm"
    return roles
