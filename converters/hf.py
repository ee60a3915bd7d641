"""A Hugging Face model folder: config.json, weights as safetensors or as PyTorch pickles, tokenizer files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from russet.converters.base import Source, SourceTensor, tokenizer_files
from russet.converters.torch_file import read_torch_file
from russet.engine.errors import CheckpointError, UnsupportedModelError
from russet.models.safetensors_file import open_safetensors
from russet.models.shards import INDEX, indexed_files, inside, shards

PICKLE_INDEX = "pytorch_model.bin.index.json"

MLX_NAMES = {
    "F64": "float32",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "BOOL": "bool_",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "U32": "uint32",
    "I32": "int32",
    "U64": "uint64",
    "I64": "int64",
}

# Buffers that old checkpoints carry and that models compute for themselves.
BUFFERS = (".rotary_emb.inv_freq", ".masked_bias", ".attn.bias", "position_ids")


def open_hf(folder: Path, config: dict[str, Any]) -> Source:
    """The checkpoint in a folder whose config.json is `config`; safetensors win over pickles where both are there.

    Raises UnsupportedModelError for weights that are quantised already, CheckpointError when there are none.
    """
    _refuse_quantized(config)
    kind, tensors = _read_weights(folder)
    names = [tensor.name for tensor in tensors]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise CheckpointError(f"Two weight files of {folder} both hold {twice!r}; remove the one that is left over.")
    kept = tuple(tensor for tensor in tensors if not _is_redundant(tensor.name, config))
    dropped = [name for name in names if _is_redundant(name, config)]
    notes = (f"left out what models make themselves: {', '.join(dropped[:3])}{', ...' * (len(dropped) > 3)}",)
    return Source(kind, config, kept, tokenizer_files(folder), notes if dropped else ())


def read_safetensors(path: Path) -> tuple[SourceTensor, ...]:
    """The tensors of one safetensors file."""
    file = open_safetensors(path)
    return tuple(
        SourceTensor(name, info.shape, MLX_NAMES[info.dtype], info.nbytes, lambda name=name: file.read(name))
        for name, info in file.tensors.items()
    )


def _read_weights(folder: Path) -> tuple[str, list[SourceTensor]]:
    if (folder / INDEX).exists() or any(folder.glob("model*.safetensors")):
        files = shards(folder)
        return "safetensors", [tensor for path in files for tensor in read_safetensors(path)]
    if (folder / PICKLE_INDEX).exists():
        files = indexed_files(folder, PICKLE_INDEX)
    else:
        found = sorted(path for pattern in ("pytorch_model*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
        files = [inside(folder, path.name) for path in found]
    if not files:
        raise CheckpointError(
            f"{folder} has a config.json but no weights; model.safetensors or pytorch_model.bin is expected."
        )
    return "PyTorch", [tensor for path in files for tensor in read_torch_file(path)]


def _is_redundant(name: str, config: dict[str, Any]) -> bool:
    tied = config.get("tie_word_embeddings") is True
    return name.endswith(BUFFERS) or (tied and name == "lm_head.weight")


def _refuse_quantized(config: dict[str, Any]) -> None:
    found = config.get("quantization") or config.get("quantization_config")
    if found:
        method = found.get("quant_method", "MLX") if isinstance(found, dict) else found
        raise UnsupportedModelError(
            f"The checkpoint is quantised already ({method}); convert the 16-bit checkpoint that it was made from."
        )
