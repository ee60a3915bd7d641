"""The decoder beside mlx-lm's own implementations, on the same folder: greedy tokens, and packed weights' logits."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model

from russet.models import loading

Extend = Callable[[mx.array], mx.array]
"""Tokens [1, rows] -> logits [1, rows, vocab], after the rows of earlier calls."""

VOCAB = 96
STOCK: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {**STOCK, "tie_word_embeddings": True},
    "qwen2": STOCK,
    "qwen3": {**STOCK, "head_dim": 32},
    # mlx-lm rounds the embedding's scale to bfloat16; the root of 64 survives that.
    "gemma3_text": {
        **STOCK,
        "tie_word_embeddings": True,
        "head_dim": 32,
        "query_pre_attn_scalar": 24,
        "sliding_window": 8,
        "sliding_window_pattern": 3,
        "rope_local_base_freq": 1000.0,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    },
    "openelm": {
        "vocab_size": VOCAB,
        "model_dim": 64,
        "head_dim": 16,
        "num_transformer_layers": 3,
        "num_query_heads": [4, 4, 8],
        "num_kv_heads": [1, 2, 2],
        "ffn_multipliers": [0.5, 1.0, 2.0],
        "ffn_dim_divisor": 32,
    },
    "afm7": {
        "vocab_size": VOCAB,
        "hidden_dim": 64,
        "num_layers": 5,
        "num_kv_reuse_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "hidden_dim_scale_factor": 1.5,
        "rope_theta": 500000.0,
    },
}
BITS = (8, 4, 2)
QUANTISED_TOLERANCE = {"afm7": 0.2}
"""1e-4 unless said: both engines multiply the same float32 values, whatever the bits; measured 4e-5 of logits up to 15.

afm7 rounds keys and values to an int8 grid. Where one lies within float32 noise of a tie, one engine rounds up and the
other down, which then moves later logits: measured 5e-2. A swapped or misread tensor moves them by more than 1.
"""


def draw(name: str, shape: tuple[int, ...], rng: np.random.Generator, norm_centre: float) -> np.ndarray:
    """Weights that keep the magnitude of what goes through them, so that attention is not flat."""
    if name.endswith("_scale"):
        return np.array(0.02)
    values = rng.standard_normal(shape)
    if len(shape) == 1:
        return 0.3 * values + (0.0 if name.endswith(".bias") else norm_centre)
    return values * (0.5 if "embed" in name else 1.3 * shape[-1] ** -0.5)


def write_folder(folder: Path, config: dict[str, Any], weights: dict[str, mx.array]) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    return folder


def random_folder(model_type: str, folder: Path, seed: int = 0) -> Path:
    """A folder that mlx-lm loads, with random float32 weights."""
    config = {"model_type": model_type, **CONFIGS[model_type]}
    module = importlib.import_module(f"mlx_lm.models.{model_type}")
    model = module.Model(module.ModelArgs.from_dict(config))
    rng, centre = np.random.default_rng(seed), 0.0 if model_type == "gemma3_text" else 1.0
    weights: dict[str, mx.array] = {}
    for name, array in sorted(dict(tree_flatten(model.parameters())).items()):  # type: ignore[arg-type]
        if not (name.startswith("lm_head") and config.get("tie_word_embeddings")):
            weights[name] = mx.array(draw(name, array.shape, rng, centre).astype(np.float32))
    return write_folder(folder, config, weights)


def quantised_folder(source: Path, folder: Path, bits: int) -> Path:
    """`source` with every matrix packed in groups of 32, as mlx-lm's converter packs it."""
    config = json.loads((source / "config.json").read_text())
    weights = mx.load(str(source / "model.safetensors"))
    assert isinstance(weights, dict)
    packed: dict[str, mx.array] = {}
    for name, array in weights.items():
        if array.ndim == 2:
            stem = name.removesuffix(".weight")
            parts = mx.quantize(array, group_size=32, bits=bits)
            packed |= dict(zip((name, f"{stem}.scales", f"{stem}.biases"), parts, strict=True))
        else:
            packed[name] = array
    return write_folder(folder, {**config, "quantization": {"group_size": 32, "bits": bits}}, packed)


def expanded_folder(source: Path, folder: Path, bits: int) -> Path:
    """`source`, packed and unpacked again: what mlx-lm is given where it cannot run packed weights itself."""
    config = json.loads((source / "config.json").read_text())
    weights = mx.load(str(source / "model.safetensors"))
    assert isinstance(weights, dict)
    dense = {
        name: mx.dequantize(*mx.quantize(array, group_size=32, bits=bits), group_size=32, bits=bits)
        if array.ndim == 2
        else array
        for name, array in weights.items()
    }
    return write_folder(folder, config, dense)


def mlx_lm_extend(folder: Path) -> Extend:
    model, _ = load_model(folder)
    assert isinstance(model, nn.Module)
    cache = make_prompt_cache(model)
    return lambda tokens: model(tokens, cache=cache)


def russet_extend(folder: Path) -> Extend:
    decoder = loading.load_decoder(folder, dtype="float32")
    cache = decoder.new_cache()

    def extend(tokens: mx.array) -> mx.array:
        logits = decoder.extend(tokens, cache, logits=tokens.shape[1])
        assert logits is not None
        return logits

    return extend


def greedy(extend: Extend, prompt: list[int], count: int) -> list[int]:
    tokens: list[int] = []
    logits = extend(mx.array([prompt]))
    for _ in range(count):
        tokens.append(int(np.array(logits[0, -1]).argmax()))
        logits = extend(mx.array([tokens[-1:]]))
    return tokens


@pytest.mark.parametrize("length", [1, 6, 50])
@pytest.mark.parametrize("model_type", CONFIGS)
def test_greedy_tokens_equal_mlx_lm(model_type: str, length: int, tmp_path: Path) -> None:
    folder = random_folder(model_type, tmp_path / "model", seed=length)
    prompt = np.random.default_rng(length).integers(0, VOCAB, length).tolist()
    assert greedy(russet_extend(folder), prompt, 24) == greedy(mlx_lm_extend(folder), prompt, 24)


@pytest.mark.parametrize("expand", [True, False], ids=["expanded", "packed"])
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("model_type", CONFIGS)
def test_quantised_logits_equal_mlx_lm(
    model_type: str, bits: int, expand: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CPU expands packed weights at load and a GPU keeps them: both ways, whichever this machine takes."""
    monkeypatch.setattr(loading, "_expand", lambda *_: expand)
    plain = random_folder(model_type, tmp_path / "plain")
    folder = quantised_folder(plain, tmp_path / "packed", bits)
    # mlx-lm 0.32's afm7 raises on packed fused projections.
    peer = expanded_folder(plain, tmp_path / "expanded", bits) if model_type == "afm7" else folder
    tolerance = QUANTISED_TOLERANCE.get(model_type, 1e-4)
    tokens = mx.array(np.random.default_rng(1).integers(0, VOCAB, (1, 20)))
    ours, theirs = russet_extend(folder), mlx_lm_extend(peer)
    for part in (tokens[:, :15], tokens[:, 15:]):
        assert np.abs(np.array(ours(part)) - np.array(theirs(part))).max() < tolerance
