"""How matrices are stored: what is read back, what it takes, and that balanced 2-bit weights are kept to the bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from russet.converters.convert import convert
from russet.converters.coreml.palettes import palettize
from russet.converters.coreml.weights import Stored, encode, predicted_bytes
from russet.converters.exporting import ExportOptions, export
from russet.converters.recipes.balanced import codes, pack, store
from russet.engine.errors import InvalidOptionError, WeightsError
from russet.models.mil.interpreter import Interpreter
from russet.models.runtimes.coreml import interpreted

from .conftest import GOLDEN, MIXED, largest_error, our_logits, run_calls, token_ids

WEIGHT = np.random.default_rng(0).normal(size=(48, 128)).astype(np.float32)
RELATIVE = {"float16": 2.0**-11, "int8": 0.01, "int4": 0.1, "palette4": 0.11, "palette2": 0.36}
"""The relative RMS error of normal numbers that each kind may have; of 2-bit palettes Lloyd's bound is 0.343."""


def expanded(stored: Stored) -> np.ndarray:
    """What a kind stands for, by its description in weights.py."""
    parts = {name: part.astype(np.float32) for name, part in stored.parts.items()}
    if "val" in parts:
        return parts["val"]
    if "data" in parts:
        return parts["data"] * np.repeat(parts["scale"], parts["data"].shape[1] // parts["scale"].shape[1], axis=1)
    tables = np.repeat(parts["lut"][:, 0, :, 0], parts["indices"].shape[0] // parts["lut"].shape[0], axis=0)
    return np.take_along_axis(tables, stored.parts["indices"].astype(np.int64), axis=1)


@pytest.mark.parametrize("kind", RELATIVE)
def test_errors_and_sizes(kind: str) -> None:
    stored = encode("x", kind, WEIGHT)
    error = np.sqrt(np.square(expanded(stored) - WEIGHT).mean() / np.square(WEIGHT).mean())
    assert 0 < error < RELATIVE[kind]
    assert stored.nbytes == predicted_bytes(kind, WEIGHT.shape)


def test_a_palette_is_a_fixed_point_of_k_means() -> None:
    indices, tables = palettize(WEIGHT, 4)
    assert tables.shape == (3, 16) and (np.diff(tables.astype(np.float32), axis=1) > 0).all()
    for rows, table, chosen in zip(WEIGHT.reshape(3, -1), tables, indices.reshape(3, -1), strict=True):
        np.testing.assert_array_equal(chosen, np.abs(rows[:, None] - table.astype(np.float32)).argmin(1))
        means = [rows[chosen == k].mean() for k in range(16)]
        np.testing.assert_allclose(means, table, atol=0.02)


def test_numbers_that_float16_cannot_hold_are_refused() -> None:
    with pytest.raises(WeightsError, match="norm holds numbers above float16's largest, 65504"):
        encode("norm", "float16", np.array([7e4], np.float32))
    with pytest.raises(WeightsError, match="norm holds values that are not finite"):
        encode("norm", "int8", np.array([[np.nan]], np.float32))


@pytest.mark.parametrize("kind", ["int8", "int4", "palette4", "palette2"])
def test_a_package_computes_with_the_stored_weights(kind: str, tmp_path: Path, exported: Callable[..., Path]) -> None:
    """Our decoder with the expanded weights in its folder agrees in float32."""
    source = tiny(tmp_path / "source")
    package = exported(source, weights=kind)
    stored = mx.load(str(source / "model.safetensors"))
    assert isinstance(stored, dict)
    tensors = {}
    for name, array in stored.items():
        table = "embed" in name
        dense = array.ndim == 1
        used = "float16" if dense else "int8" if table else kind
        tensors[name] = mx.array(expanded(encode(name, used, np.array(array.astype(mx.float32)))))
    folder = write(tmp_path / "expanded", tensors)
    decoder = interpreted(package, "float32")
    tokens = token_ids(decoder.vocab_size or 0)
    assert largest_error(run_calls(decoder, tokens), our_logits(folder, tokens)) < 1e-4
    kinds = {"int8": "constexpr_blockwise_shift_scale", "palette2": "constexpr_lut_to_dense"}
    assert operations(package) >= {kinds.get(kind, kinds["int8"])}


@pytest.mark.parametrize(("group", "system"), [(64, None), (0, None), (32, "ios26")])
@pytest.mark.parametrize("by_neuron", [False, True])
def test_balanced_weights_are_kept_to_the_bit(
    group: int, system: str | None, by_neuron: bool, tmp_path: Path, exported: Callable[..., Path]
) -> None:
    source = balanced(tmp_path / "balanced", group, by_neuron)
    package = exported(source, **({"system": system} if system else {}))
    exact = interpreted(package, "float32")
    tokens = token_ids(exact.vocab_size or 0)
    assert largest_error(run_calls(exact, tokens, MIXED[:6]), our_logits(source, tokens)) < 1e-4
    interpreter = Interpreter(package)
    interpreter._schedule("decode")
    assert "constexpr_lut_to_dense" in operations(package)
    assert ("constexpr_blockwise_shift_scale" in operations(package)) == (system == "ios26")
    for role, wanted in balanced_levels(source).items():
        found = interpreter._constants["decode"][role.replace(".", "_")]
        np.testing.assert_array_equal(found, wanted.T if by_neuron and role.endswith("down") else wanted)


def test_balanced_weights_are_small(tmp_path: Path) -> None:
    """2 + 64 / 64 bits and 2 + 16 / 32, or one scale a row."""
    for group, system, bits in ((64, None, 3.0), (32, "ios26", 2.5), (0, None, 2 + 64 / 128)):
        folder = balanced(tmp_path / f"{group}", group, False)
        report = export(folder, tmp_path / "x", "coreml", options=ExportOptions(system=system), dry_run=True)
        up = next(line for line in report.lines if "up_proj" in line[0])
        assert report.weights == "stored" and abs(8 * up[3] / (2 * 128 * 192) - bits) < 0.01


@pytest.mark.parametrize(("bits", "tolerance"), [(8, 2e-3), (4, 2e-3), (2, 2e-3)])
def test_packed_weights_are_kept_as_they_are(
    bits: int, tolerance: float, tmp_path: Path, exported: Callable[..., Path]
) -> None:
    """But for offsets and levels, which are rounded to float16: 2^-11 of a number of about 1."""
    source = tmp_path / "packed"
    convert(tiny(tmp_path / "dense"), source, bits=bits, group_size=64)
    package = exported(source, weights="stored")
    decoder = interpreted(package, "float32")
    tokens = token_ids(decoder.vocab_size or 0)
    assert largest_error(run_calls(decoder, tokens, MIXED[:6]), our_logits(source, tokens)) < tolerance
    report = export(source, tmp_path / "x", "coreml", options=ExportOptions(weights="stored"), dry_run=True)
    assert report.bits_per_weight < bits + 1.1 and not report.notes[1:]


def test_only_packed_weights_can_be_kept(half: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(InvalidOptionError, match="has no packed weights to keep as they are stored"):
        export(half("llama-tied"), tmp_path / "x", "coreml", options=ExportOptions(weights="stored"))


def test_float32_is_for_another_target(half: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(InvalidOptionError, match="Core ML packages hold float16 weights at most"):
        export(half("llama-tied"), tmp_path / "x", "coreml", options=ExportOptions(weights="float32"))


CONFIG = {
    **json.loads((GOLDEN / "llama-tied" / "config.json").read_text()),
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "head_dim": 32,
    "vocab_size": 96,
    "max_position_embeddings": 64,
}


def tiny(folder: Path) -> Path:
    rng = np.random.default_rng(1)
    tensors = {
        name: mx.array(1 + 0.1 * rng.normal(size=shape) if len(shape) == 1 else 0.1 * rng.normal(size=shape))
        for name, shape in shapes().items()
    }
    return write(folder, {name: array.astype(mx.float16) for name, array in tensors.items()})


def shapes() -> dict[str, tuple[int, ...]]:
    from russet.models.families import family_of, read_decoder
    from russet.models.shapes import expected_shapes

    config = read_decoder(CONFIG)
    names = family_of(CONFIG).names(config)
    return {f"{names[role]}.weight": shape for role, shape in expected_shapes(config).items() if role in names}


def balanced(folder: Path, group: int, by_neuron: bool) -> Path:
    """A folder as the 2-bit recipe writes it: balanced projections, the embedding in 16 bits."""
    source = tiny(folder.with_name(folder.name + "-dense"))
    dense = mx.load(str(source / "model.safetensors"))
    assert isinstance(dense, dict)
    tensors: dict[str, mx.array] = {}
    quantization: dict[str, Any] = {"group_size": group, "bits": 2, "mode": "balanced"}
    for name, array in dense.items():
        stem = name.removesuffix(".weight")
        if "proj" in name:
            rows = (array.T if by_neuron and "down_proj" in name else array).astype(mx.float32)
            scales = store(mx.abs(rows.reshape(rows.shape[0], -1, group or rows.shape[1])).mean(axis=-1))
            tensors[name] = pack(codes(rows, scales))
            kept = scales.astype(mx.float16)
            tensors[f"{stem}.scales"] = kept if group else kept[:, 0]
        else:
            tensors[name] = array
    keys = {"quantization": quantization, **({"ffn_down": "neuron_major", "hidden_act": "relu"} if by_neuron else {})}
    return write(folder, tensors, keys)


def balanced_levels(folder: Path) -> dict[str, np.ndarray]:
    """The dense projections of layer 0 by role, as the folder stores their rows."""
    tensors = mx.load(str(folder / "model.safetensors"))
    assert isinstance(tensors, dict)
    found = {}
    for role, name in (("q", "self_attn.q_proj"), ("up", "mlp.up_proj"), ("down", "mlp.down_proj")):
        words = np.array(tensors[f"model.layers.0.{name}.weight"])
        scales = np.array(tensors[f"model.layers.0.{name}.scales"]).astype(np.float32)
        scales = scales[:, None] if scales.ndim == 1 else scales
        level = ((words[..., None] >> np.arange(0, 32, 2, dtype=np.uint32)) & 3).reshape(len(words), -1) - 1.5
        found[f"layers.0.{role}"] = level * np.repeat(scales, level.shape[1] // scales.shape[1], axis=1)
    return found


def write(folder: Path, tensors: dict[str, mx.array], keys: dict[str, Any] | None = None) -> Path:
    folder.mkdir()
    mx.save_safetensors(str(folder / "model.safetensors"), tensors)
    (folder / "config.json").write_text(json.dumps(CONFIG | (keys or {})))
    return folder


def operations(package: Path) -> set[str]:
    spec = Interpreter(package).spec.mlProgram.functions["decode"]
    return {op.type for op in spec.block_specializations[spec.opset].operations}
