"""The model that a recipe starts from: its configuration and its weights in float32."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from russet.engine.blas import use_fast_blas
from russet.engine.errors import CheckpointError, InvalidOptionError, UnsupportedModelError
from russet.models.config import DecoderConfig
from russet.models.config_file import read_config
from russet.models.families import Family, family_of, read_decoder
from russet.models.sparsity import DOWN_KEY, THRESHOLDS_KEY
from russet.models.weights import Weights

Params = dict[str, mx.array]
"""Arrays by role, biases as `<role>.bias`."""


@dataclass(frozen=True)
class Source:
    """A model folder opened for training; `weights` are float32, `dtype` is what the folder stores."""

    folder: Path
    raw: dict[str, Any]
    config: DecoderConfig
    family: Family
    weights: Params
    dtype: mx.Dtype


def open_source(folder: Path) -> Source:
    """Read a model folder; packed tensors are expanded, and the configuration says nothing of them any more.

    Raises UnsupportedModelError for what cannot be differentiated, and what loading a model raises.
    """
    use_fast_blas()
    raw = read_config(folder)
    config = read_decoder(raw)
    if config.quantized_kv:
        raise UnsupportedModelError(
            f"{folder} keeps its keys and values on an int8 grid, which has no gradient; recipes train models without."
        )
    if raw.get(DOWN_KEY) or raw.get(THRESHOLDS_KEY):
        raise UnsupportedModelError(
            f"{folder} was written by `russet sparsify`; give the folder that it was made from, which has all neurons."
        )
    family = family_of(raw)
    roles = family.names(config)
    stored = Weights(folder, raw, roles, config)
    dtype = stored.dtype
    weights: Params = {}
    for role in roles:
        part = role.rpartition(".")[2]
        weights[role] = stored.dense(role, mx.float32) if part.endswith("norm") else _dense(stored, role)
        if _has_bias(config, part):
            weights[f"{role}.bias"] = stored.bias(role).astype(mx.float32)
    mx.eval(weights)
    raw.pop("quantization", None)
    raw.pop("quantization_config", None)
    return Source(folder, raw, config, family, weights, dtype)


def refuse_other_tokens(source: Path, teacher: Path) -> None:
    """Raise InvalidOptionError where both folders have a tokenizer.json and ids mean other tokens in them."""
    files = [folder / "tokenizer.json" for folder in (source, teacher)]
    if all(file.exists() for file in files) and _vocabulary(files[0]) != _vocabulary(files[1]):
        raise InvalidOptionError(
            f"The teacher {teacher} has another tokenizer than {source}; a teacher with the source's is expected."
        )


def _vocabulary(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))["model"]["vocab"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file} is damaged ({error}); copy the model again.") from error


def _dense(stored: Weights, role: str) -> mx.array:
    weight = stored.weight(role, mx.float32, expand=True)
    assert isinstance(weight, mx.array)
    return weight


def _has_bias(config: DecoderConfig, part: str) -> bool:
    if part in ("q", "k", "v"):
        return config.qkv_bias
    return config.out_bias if part == "o" else config.ffn_bias and part in ("gate", "up", "down")
