"""OpenELM as corenet saves it: Hugging Face's tensor names without their prefix, and no configuration.

The model's shape is read off the tensors. Naming: corenet/modeling/models/language_modeling/general_gpt.py.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from russet.converters.base import Source, SourceTensor, tokenizer_files
from russet.engine.errors import CheckpointError, UnsupportedModelError

EMBEDDING = "token_embeddings.weight"
_LAYER = re.compile(r"layers\.(\d+)\.(.+)")
# Buffers of corenet's rotary embedding, which depend on the head size alone.
_BUFFERS = re.compile(r"layers\.\d+\.attn\.pos_embedding\..+")

CONTEXT = 2048
GROUPS = 4
FFN_DIVISOR = 256


def recognises(names: set[str]) -> bool:
    """Whether these are the tensor names of a corenet OpenELM checkpoint."""
    return EMBEDDING in names and "layers.0.attn.qkv_proj.weight" in names


def open_corenet(path: Path, tensors: Sequence[SourceTensor]) -> Source:
    """The checkpoint whose tensors were read from `path`; tokenizer files are those beside it.

    Raises UnsupportedModelError for a classifier of its own, which no published OpenELM has.
    """
    if any(tensor.name.startswith("classifier.") for tensor in tensors):
        raise UnsupportedModelError(
            f"{path.name} has an output classifier of its own; OpenELM shares it with the embedding."
        )
    kept = [tensor for tensor in tensors if not _BUFFERS.fullmatch(tensor.name)]
    config = _config(path, {tensor.name: tensor.shape for tensor in kept})
    renamed = tuple(replace(tensor, name=f"transformer.{tensor.name}") for tensor in kept)
    return Source("corenet", config, renamed, tokenizer_files(path.parent))


def _config(path: Path, shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    """Hugging Face's OpenELM config.json: head counts and FFN widths of each layer."""
    numbers = {int(match[1]) for name in shapes if (match := _LAYER.fullmatch(name))}
    layers = [f"layers.{i}" for i in range(len(numbers))]
    try:
        vocabulary, hidden = shapes[EMBEDDING]
        head_dim = shapes["layers.0.attn.q_norm.weight"][0]
        heads = [shapes[f"{layer}.attn.out_proj.weight"][1] // head_dim for layer in layers]
        fused = [shapes[f"{layer}.attn.qkv_proj.weight"][0] // head_dim for layer in layers]
        widths = [shapes[f"{layer}.ffn.proj_2.weight"][1] for layer in layers]
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise CheckpointError(
            f"{path.name} is not a complete OpenELM checkpoint: {error} is missing or has an unexpected shape."
        ) from error
    return {
        "model_type": "openelm",
        "architectures": ["OpenELMForCausalLM"],
        "vocab_size": vocabulary,
        "max_context_length": CONTEXT,
        "num_transformer_layers": len(layers),
        "model_dim": hidden,
        "head_dim": head_dim,
        "num_gqa_groups": GROUPS,
        "num_query_heads": heads,
        "num_kv_heads": [(total - own) // 2 for total, own in zip(fused, heads, strict=True)],
        "ffn_multipliers": [width / hidden for width in widths],
        "ffn_dim_divisor": FFN_DIVISOR,
        "ffn_with_glu": True,
        "activation_fn_name": "swish",
        "normalization_layer_name": "rms_norm",
        "normalize_qk_projections": True,
        "share_input_output_layers": True,
        "rope_freq_constant": 10000,
        "rope_max_length": 2 * CONTEXT,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
