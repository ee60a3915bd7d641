"""Apple's on-device model as the `tamm` library saves it -> mlx-lm's afm7.

Names follow tamm's module tree (tamm/models/afm_text/afm_text_v7.py). Loading adapters wraps the linear layers, so that
names may hold `.wrapped.` and the adapters' own tensors; adapters that change nothing are dropped, others refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from russet.converters.base import Source, SourceTensor, tokenizer_files
from russet.engine.errors import CheckpointError, UnsupportedModelError

if TYPE_CHECKING:
    import mlx.core as mx

_LAYER = re.compile(r"layers\.(?:segment_(\d)\.)?layer_(\d+)\.(.+)")
_ADAPTER = re.compile(r".+\.adapters\.([^.]+)\.(?:lora_\d\.)?(a|b)_transpose")
_RANGE = re.compile(r"attention\.kv_quantizer\.(key|value)_quantizer\.activation_post_process\.range")

LAYER_NAMES = {
    "attention.norm": "input_layernorm",
    "attention.qkv_transform.fused_linear": "self_attn.qkv_proj",
    "attention.q_transform": "self_attn.q_proj",
    "attention.qk_norm.query_norm": "self_attn.q_norm",
    "attention.qk_norm.key_norm": "self_attn.k_norm",
    "attention.q_norm.query_norm": "self_attn.q_norm",
    "attention.output_transform": "self_attn.out_proj",
    "feed_forward.norm": "post_attention_layernorm",
    "feed_forward.hidden_transform.linear_0": "mlp.gate_proj",
    "feed_forward.hidden_transform.linear_1": "mlp.up_proj",
    "feed_forward.output_transform": "mlp.down_proj",
}
TOP_NAMES = {"embedding.weight": "model.embedding.weight", "output_norm.weight": "model.output_norm.weight"}

# The head is the embedding; num_samples belongs to training.
_DROPPED = re.compile(r"output_transform\.weight|.+\.num_samples")

ROPE_THETA = 500_000.0
NORM_EPS = 1e-5


def recognises(names: set[str]) -> bool:
    """Whether these are the tensor names of a tamm AFM state dict."""
    return "embedding.weight" in names and any(_LAYER.fullmatch(name) for name in names)


def open_tamm(path: Path, tensors: Sequence[SourceTensor]) -> Source:
    """The checkpoint whose tensors were read from `path`; tokenizer files are those beside it.

    Raises UnsupportedModelError for an adapter that changes the model, or a tensor that afm7 has no place for.
    """
    adapters = [tensor for tensor in tensors if _ADAPTER.fullmatch(tensor.name)]
    _refuse_trained(path, adapters)
    kept = []
    for tensor in tensors:
        plain = tensor.name.replace(".wrapped.", ".")
        if not _DROPPED.fullmatch(plain) and not _ADAPTER.fullmatch(plain):
            kept.append(replace(tensor, name=plain))
    config = _config(path, {tensor.name: tensor.shape for tensor in kept})
    renamed = tuple(_rename(path, tensor) for tensor in kept)
    notes = (f"left out {len(adapters)} tensors of adapters that change nothing",) if adapters else ()
    return Source("tamm", config, renamed, tokenizer_files(path.parent), notes)


def _refuse_trained(path: Path, adapters: Sequence[SourceTensor]) -> None:
    """A low-rank update is the product of its two factors: it is nothing exactly where the second is zero."""
    import mlx.core as mx

    for tensor in adapters:
        match = _ADAPTER.fullmatch(tensor.name)
        if match and match[2] == "b" and bool(mx.any(tensor.read() != 0)):
            raise UnsupportedModelError(
                f"{path.name} holds the trained adapter {match[1]!r}; merge it with tamm's merge_adapter, or save the "
                "base model alone."
            )


def _rename(path: Path, tensor: SourceTensor) -> SourceTensor:
    name = tensor.name
    if name in TOP_NAMES:
        return replace(tensor, name=TOP_NAMES[name])
    match = _LAYER.fullmatch(name)
    if match is None:
        raise UnsupportedModelError(f"{path.name} holds {name!r}, which has no place in an AFM model.")
    stack = "kv_reuse_layers" if match[1] == "1" else "layers"
    prefix, part = f"model.{stack}.{match[2]}", match[3]
    if found := _RANGE.fullmatch(part):
        scale = f"{prefix}.self_attn.quant_{found[1]}_scale"
        return replace(tensor, name=scale, shape=(), nbytes=4, read=lambda: _scale(tensor), pinned=True)
    module, _, leaf = part.rpartition(".")
    if module not in LAYER_NAMES or leaf != "weight":
        raise UnsupportedModelError(f"{path.name} holds {name!r}, which has no place in an AFM model.")
    return replace(tensor, name=f"{prefix}.{LAYER_NAMES[module]}.weight")


def _scale(tensor: SourceTensor) -> mx.array:
    """The step of the symmetric int8 grid that covers a [minimum, maximum] range, as tamm computes it."""
    import mlx.core as mx

    return mx.max(tensor.read().astype(mx.float32) * mx.array([1 / -128, 1 / 127], dtype=mx.float32))


def _config(path: Path, shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    """afm7's config.json, read off the tensors."""
    layers = {(match[1], match[2]) for name in shapes if (match := _LAYER.fullmatch(name))}
    reuse = sum(segment == "1" for segment, _ in layers)
    first = "layers.layer_0" if "layers.layer_0.attention.norm.weight" in shapes else "layers.segment_0.layer_0"
    try:
        vocabulary, hidden = shapes["embedding.weight"]
        head_dim = shapes[f"{first}.attention.qk_norm.query_norm.weight"][0]
        fused = shapes[f"{first}.attention.qkv_transform.fused_linear.weight"][0]
        ffn_dim = shapes[f"{first}.feed_forward.hidden_transform.linear_0.weight"][0]
        heads = hidden // head_dim
        kv_heads = (fused // head_dim - heads) // 2
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise CheckpointError(
            f"{path.name} is not a complete AFM state dict: {error} is missing or has an unexpected shape."
        ) from error
    factor = ffn_dim / hidden
    return {
        "model_type": "afm7",
        "vocab_size": vocabulary,
        "hidden_dim": hidden,
        "num_layers": len(layers),
        "num_kv_reuse_layers": reuse,
        "num_heads": heads,
        "num_kv_heads": kv_heads,
        # afm7 takes int(hidden * factor), which a quotient rounded down would leave one short
        "hidden_dim_scale_factor": factor if int(hidden * factor) == ffn_dim else math.nextafter(factor, math.inf),
        "rope_theta": ROPE_THETA,
        "rms_norm_eps": NORM_EPS,
        "tie_word_embeddings": True,
    }
