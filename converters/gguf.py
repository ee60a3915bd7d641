"""GGUF files of Llama, Qwen 2 and 3 and Gemma 3 -> Hugging Face's config.json and tensor names.

The inverse of llama.cpp's convert_hf_to_gguf.py: Llama's query and key rows go back to half-split order, Gemma's norms
lose the 1 that was added, Llama 3's rotary factors become `rope_scaling` again.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from russet.converters.base import Packed, Source, SourceTensor
from russet.converters.gguf_file import GGUFFile
from russet.converters.gguf_rope import rope_settings
from russet.converters.gguf_tokenizer import end_ids, tokenizer_files
from russet.engine.errors import CheckpointError, UnsupportedModelError

if TYPE_CHECKING:
    import mlx.core as mx

# GGUF architecture -> Hugging Face's model_type and class
ARCHITECTURES = {
    "llama": ("llama", "LlamaForCausalLM"),
    "qwen2": ("qwen2", "Qwen2ForCausalLM"),
    "qwen3": ("qwen3", "Qwen3ForCausalLM"),
    "gemma3": ("gemma3_text", "Gemma3ForCausalLM"),
}
TOP_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
GEMMA_NAMES = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
ROPE_FACTORS = "rope_freqs.weight"

_NAME = re.compile(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)")
GEMMA_27B_LAYERS = 62


def open_gguf(path: Path) -> Source:
    """Open a GGUF file.

    Raises UnsupportedModelError, naming it, for an architecture, an option or a tensor that has no stock counterpart.
    """
    file = GGUFFile(path)
    if file.architecture not in ARCHITECTURES:
        raise UnsupportedModelError(
            f"{path.name} is a {file.architecture!r} model; from GGUF Russet converts {', '.join(ARCHITECTURES)}."
        )
    tokenizer = tokenizer_files(file)
    config = _config(file)
    tensors = tuple(_stock(file, tensor, config) for name, tensor in file.tensors.items() if name != ROPE_FACTORS)
    generation = {key: config[key] for key in ("bos_token_id", "eos_token_id") if key in config}
    files = {**tokenizer, "generation_config.json": json.dumps(generation, indent=2).encode()}
    return Source("GGUF", config, tensors, files)


def _config(file: GGUFFile) -> dict[str, Any]:
    """The stock config.json."""
    model_type, class_name = ARCHITECTURES[file.architecture]
    if file.get(f"{file.architecture}.expert_count"):
        raise UnsupportedModelError(
            f"{file.path.name} is a mixture of experts, which Russet does not convert from GGUF."
        )
    if "token_embd.weight" not in file.tensors:
        raise CheckpointError(f"{file.path.name} has no tensor token_embd.weight; it is not a whole model.")
    heads = file.number("attention.head_count", int)
    hidden = file.number("embedding_length", int)
    head_dim = file.number("attention.key_length", int, hidden // heads)
    if file.number("attention.value_length", int, head_dim) != head_dim:
        raise UnsupportedModelError(f"{file.path.name} has keys and values of different sizes.")
    config = {
        "model_type": model_type,
        "architectures": [class_name],
        "vocab_size": file.tensors["token_embd.weight"].shape[0],
        "hidden_size": hidden,
        "intermediate_size": file.number("feed_forward_length", int),
        "num_hidden_layers": file.number("block_count", int),
        "num_attention_heads": heads,
        "num_key_value_heads": file.number("attention.head_count_kv", int, heads),
        "head_dim": head_dim,
        "max_position_embeddings": file.number("context_length", int),
        "rms_norm_eps": file.number("attention.layer_norm_rms_epsilon", float),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "torch_dtype": "float16",
        **rope_settings(file, head_dim, ROPE_FACTORS),
        **_token_ids(file),
    }
    config.update(_gemma(file, config) if file.architecture == "gemma3" else _llama_like(file))
    return config


def _token_ids(file: GGUFFile) -> dict[str, Any]:
    ends = end_ids(file)
    ids = {
        "bos_token_id": file.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        "pad_token_id": file.get("tokenizer.ggml.padding_token_id"),
    }
    return {key: value for key, value in ids.items() if value is not None}


def _llama_like(file: GGUFFile) -> dict[str, Any]:
    settings: dict[str, Any] = {"hidden_act": "silu"}
    if file.architecture == "llama":
        attention = {f"blk.0.{part}.bias" in file.tensors for part in ("attn_q", "attn_k", "attn_v", "attn_output")}
        if len(attention) > 1:
            raise UnsupportedModelError(f"{file.path.name} has biases on some attention projections only.")
        settings["attention_bias"] = attention.pop()
        settings["mlp_bias"] = "blk.0.ffn_down.bias" in file.tensors
    else:
        settings["use_sliding_window"] = False
    return settings


def _gemma(file: GGUFFile, config: dict[str, Any]) -> dict[str, Any]:
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        if file.get(f"gemma3.{key}"):
            raise UnsupportedModelError(f"{file.path.name} asks for {key}, which Gemma 3 has no use of.")
    # llama.cpp scales by the head size, except in the 27B model, which scales by width / heads.
    by_width = config["num_hidden_layers"] == GEMMA_27B_LAYERS
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": (
            config["hidden_size"] // config["num_attention_heads"] if by_width else config["head_dim"]
        ),
        "sliding_window": file.number("attention.sliding_window", int),
        "sliding_window_pattern": 6,
        "rope_local_base_freq": file.number("rope.freq_base_swa", float, 10_000.0),
        "attention_bias": False,
    }


def _stock(file: GGUFFile, tensor: SourceTensor, config: dict[str, Any]) -> SourceTensor:
    """A tensor under its stock name, with what llama.cpp's converter did to it undone."""
    match = _NAME.fullmatch(tensor.name)
    is_gemma = file.architecture == "gemma3"
    table = TOP_NAMES if match and match[1] is None else LAYER_NAMES | (GEMMA_NAMES if is_gemma else {})
    if match is None or match[2] not in table:
        raise UnsupportedModelError(
            f"{file.path.name} holds the tensor {tensor.name!r}, which has no place in a {file.architecture} model."
        )
    prefix = f"model.layers.{match[1]}." if match[1] else ""
    tensor = replace(tensor, name=f"{prefix}{table[match[2]]}.{match[3]}")
    if file.architecture == "llama" and match[2] in ("attn_q", "attn_k"):
        heads = config["num_attention_heads" if match[2] == "attn_q" else "num_key_value_heads"]
        return _half_split(tensor, heads)
    if is_gemma and match[2].endswith("norm"):
        read = tensor.read
        return replace(tensor, read=lambda: read() - 1)
    return tensor


def _half_split(tensor: SourceTensor, heads: int) -> SourceTensor:
    """Undo the row order of rotary pairs: within a head, rows (0, 1), (2, 3), ... were i and i + size / 2."""
    rows = tensor.shape[0]
    if rows % (2 * heads):
        raise CheckpointError(f"{tensor.name} has {rows} rows, which do not make {heads} heads; the file is damaged.")

    def order() -> mx.array:
        import mlx.core as mx

        return mx.arange(rows).reshape(heads, rows // heads // 2, 2).swapaxes(1, 2).reshape(-1)

    read, read_packed = tensor.read, tensor.read_packed
    if read_packed is None:
        return replace(tensor, read=lambda: read()[order()])

    def in_order() -> Packed:
        index = order()
        return Packed(*(part[index] for part in read_packed()))

    return replace(tensor, read=lambda: read()[order()], read_packed=in_order)
