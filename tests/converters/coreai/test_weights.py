"""What packages hold: 16-bit numbers, integers, and packed weights number for number."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from russet.converters.convert import convert
from russet.converters.coreai.plan import make_plan
from russet.converters.coreai.stored import Packed, stored
from russet.converters.exporting import ExportOptions, export
from russet.converters.model_tensors import ModelTensors
from russet.converters.recipes.balanced import codes, pack, store
from russet.engine.errors import WeightsError
from russet.models.runtimes.coreai import CoreAIDecoder

from .conftest import GOLDEN, every_row, our_logits, token_ids


def packed(tmp_path: Path, name: str, bits: int, group: int) -> Path:
    convert(GOLDEN / name, tmp_path / "packed", bits=bits, group_size=group, dtype="float16")
    return tmp_path / "packed"


@pytest.mark.parametrize(("bits", "weights"), [(8, "int8"), (4, "int4"), (4, "stored"), (2, None)])
def test_packed_weights_are_taken_over(
    bits: int, weights: str | None, tmp_path: Path, opened: Callable[..., CoreAIDecoder]
) -> None:
    folder = packed(tmp_path, "llama", bits, 32)
    layout = make_plan(ModelTensors(folder), ExportOptions(weights=weights)).layouts["layers.0.q"]
    affine, ours = ModelTensors(folder).stored("layers.0.q"), stored(ModelTensors(folder), "layers.0.q", layout)
    assert isinstance(ours, Packed) and not isinstance(affine, np.ndarray) and ours.bits == bits
    groups = ours.integers.reshape(*ours.scales.shape, -1)
    again = (groups * ours.scales[..., None] + ours.biases[..., None]).reshape(ours.integers.shape)
    np.testing.assert_array_equal(again, np.array(affine.expand(mx.float32)))

    decoder = opened(folder, weights=weights)
    tokens = token_ids(decoder.vocab_size)
    wanted = our_logits(folder, tokens)
    difference = np.abs(every_row(decoder, tokens) - wanted)
    assert difference.max() < 0.1 and difference.mean() < 0.01


@pytest.mark.parametrize("group", [32, 0])
def test_balanced_weights_are_what_they_were(
    group: int, tiny_folder: Path, tmp_path: Path, opened: Callable[..., CoreAIDecoder]
) -> None:
    folder = tmp_path / "balanced"
    shutil.copytree(tiny_folder, folder)
    tensors = mx.load(str(folder / "model.safetensors"))
    assert isinstance(tensors, dict)
    for name, rows in list(tensors.items()):
        if "proj" in name:
            scales = store(mx.abs(rows.reshape(rows.shape[0], -1, group or rows.shape[1])).mean(axis=-1))
            tensors[name] = pack(codes(rows, scales))
            kept = scales.astype(mx.float16)
            tensors[f"{name.removesuffix('.weight')}.scales"] = kept if group else kept[:, 0]
    mx.save_safetensors(str(folder / "model.safetensors"), tensors)
    config = json.loads((folder / "config.json").read_text())
    config["quantization"] = {"group_size": group, "bits": 2, "mode": "balanced"}
    (folder / "config.json").write_text(json.dumps(config))

    layout = make_plan(ModelTensors(folder), ExportOptions()).layouts["layers.0.down"]
    ours, dense = stored(ModelTensors(folder), "layers.0.down", layout), ModelTensors(folder).dense("layers.0.down")
    assert isinstance(ours, Packed) and ours.scales.shape[1] == (96 // group if group else 1)
    assert layout.nbytes == dense.size // 4 + 4 * ours.scales.size
    again = ours.integers.reshape(*ours.scales.shape, -1) * ours.scales[..., None] + ours.biases[..., None]
    np.testing.assert_array_equal(again.reshape(dense.shape), dense)
    decoder = opened(folder)
    tokens = token_ids(decoder.vocab_size)
    wanted = our_logits(folder, tokens)
    assert np.abs(every_row(decoder, tokens) - wanted).mean() < 0.01 * np.abs(wanted).mean()


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_dense_weights_are_quantised_as_mlx_does_it(weights: str, tiny_folder: Path) -> None:
    model = ModelTensors(tiny_folder)
    layout = make_plan(model, ExportOptions(weights=weights)).layouts["layers.0.q"]
    assert make_plan(model, ExportOptions(weights=weights)).layouts["embed"].bits == 8
    assert layout.bits == int(weights[3:]) and layout.nbytes < np.prod(model.shapes["layers.0.q"]) * 1.2
    ours = stored(model, "layers.0.q", layout)
    assert isinstance(ours, Packed)
    dense = mx.array(ModelTensors(tiny_folder).dense("layers.0.q"))
    wanted = mx.dequantize(*mx.quantize(dense, layout.group, layout.bits), layout.group, layout.bits)
    groups = ours.integers.reshape(*ours.scales.shape, -1)
    again = (groups * ours.scales[..., None] + ours.biases[..., None]).reshape(ours.integers.shape)
    np.testing.assert_allclose(again, np.array(wanted), atol=1e-6)


def test_half_precision_is_near(opened: Callable[..., CoreAIDecoder]) -> None:
    decoder = opened(GOLDEN / "qwen3")
    tokens = token_ids(decoder.vocab_size)
    difference = np.abs(every_row(decoder, tokens) - our_logits(GOLDEN / "qwen3", tokens))
    assert difference.max() < 0.1 and 1e-5 < difference.mean() < 0.01


def changed(tmp_path: Path, pattern: str, factor: float, model: str = "llama") -> Path:
    """A golden model with the tensors whose names end so multiplied."""
    folder = tmp_path / "changed"
    shutil.copytree(GOLDEN / model, folder)
    tensors = mx.load(str(folder / "model.safetensors"))
    assert isinstance(tensors, dict)
    for name in [name for name in tensors if name.endswith(pattern)]:
        tensors[name] = tensors[name].astype(mx.float32) * factor
    mx.save_safetensors(str(folder / "model.safetensors"), tensors)
    return folder


def test_squares_that_float16_does_not_hold_do_no_harm(tmp_path: Path, opened: Callable[..., CoreAIDecoder]) -> None:
    folder = changed(tmp_path, "model.embed_tokens.weight", 2000.0)
    decoder = opened(folder)
    tokens = token_ids(decoder.vocab_size)
    wanted = our_logits(folder, tokens)
    assert np.abs(np.array(mx.load(str(folder / "model.safetensors"))["model.embed_tokens.weight"])).max() ** 2 > 65504
    assert np.abs(every_row(decoder, tokens) - wanted).max() < 0.1


def test_a_residual_stream_that_outgrows_float16(tmp_path: Path, opened: Callable[..., CoreAIDecoder]) -> None:
    folder = changed(tmp_path, "post_feedforward_layernorm.weight", 2e5, model="gemma3")
    decoder = opened(folder)
    tokens = token_ids(decoder.vocab_size)
    rows, wanted = every_row(decoder, tokens), our_logits(folder, tokens)
    assert np.isfinite(rows).all() and np.abs(rows - wanted).mean() < 0.01


def test_numbers_that_float16_does_not_hold_are_refused(tmp_path: Path) -> None:
    folder = changed(tmp_path, "model.norm.weight", 1e6)
    with pytest.raises(WeightsError, match="norm has numbers that float16 does not hold; give --weights float32"):
        export(folder, tmp_path / "dst", "coreai")
    assert not (tmp_path / "dst").exists()


def test_down_projections_by_neuron_are_turned(
    tiny_folder: Path, tmp_path: Path, opened: Callable[..., CoreAIDecoder]
) -> None:
    folder = tmp_path / "by-neuron"
    convert(tiny_folder, folder, bits=4, group_size=32, dtype="float16")
    config = json.loads((folder / "config.json").read_text())
    tensors = mx.load(str(folder / "model.safetensors"))
    assert isinstance(tensors, dict)
    for i in range(config["num_hidden_layers"]):
        parts = [f"model.layers.{i}.mlp.down_proj.{part}" for part in ("weight", "scales", "biases")]
        whole = mx.dequantize(*(tensors[part] for part in parts), 32, 4)
        tensors |= dict(zip(parts, mx.quantize(whole.T, 32, 4), strict=True))
    mx.save_safetensors(str(folder / "model.safetensors"), tensors)
    (folder / "config.json").write_text(json.dumps(config | {"ffn_down": "neuron_major"}))
    decoder = opened(folder, weights="stored")
    tokens = token_ids(decoder.vocab_size)
    difference = np.abs(every_row(decoder, tokens) - our_logits(folder, tokens))
    assert difference.mean() < 0.01 * np.abs(our_logits(folder, tokens)).mean()


def test_activations_that_float16_does_not_hold_are_refused(tmp_path: Path) -> None:
    folder = changed(tmp_path, "model.layers.0.mlp.down_proj.weight", 60000.0)
    with pytest.raises(WeightsError, match="numbers that are not finite"):
        export(folder, tmp_path / "dst", "coreai")
    assert not (tmp_path / "dst").exists()
