"""The shape that each tensor of a decoder must have."""

from __future__ import annotations

from russet.models.config import DecoderConfig

Shape = tuple[int, ...]


def expected_shapes(config: DecoderConfig) -> dict[str, Shape]:
    """Role (see families/base.py) -> shape of its unquantised weight, for every role that any checkpoint may have."""
    hidden = config.hidden_dim
    shapes: dict[str, Shape] = {
        "embed": (config.vocab_size, hidden),
        "head": (config.vocab_size, hidden),
        "norm": (hidden,),
    }
    for i, layer in enumerate(config.layers):
        q, kv = layer.heads * layer.head_dim, layer.kv_heads * layer.head_dim
        parts: dict[str, Shape] = {
            "q": (q, hidden),
            "k": (kv, hidden),
            "v": (kv, hidden),
            "qkv": (q + 2 * kv, hidden),
            "o": (hidden, q),
            "gate": (layer.ffn_dim, hidden),
            "up": (layer.ffn_dim, hidden),
            "gate_up": (2 * layer.ffn_dim, hidden),
            "down": (hidden, layer.ffn_dim),
            "q_norm": (layer.head_dim,),
            "k_norm": (layer.head_dim,),
            "k_scale": (),
            "v_scale": (),
        }
        norms = ("attn_norm", "ffn_norm", "post_attn_norm", "post_ffn_norm")
        parts.update(dict.fromkeys(norms, (hidden,)))
        shapes.update({f"layers.{i}.{part}": shape for part, shape in parts.items()})
    return shapes


def parameter_count(config: DecoderConfig, roles: dict[str, str]) -> int:
    """Weights of the model, embeddings counted once where they are tied."""
    shapes = expected_shapes(config)
    total = 0
    for role in roles:
        size = 1
        for n in shapes[role]:
            size *= n
        total += size
    return total
