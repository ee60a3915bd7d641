"""OpenELM in corenet's naming and AFM in tamm's: names, configuration read off the shapes, and what is dropped."""

import json
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from russet.converters.convert import convert
from russet.engine.errors import CheckpointError, UnsupportedModelError, WeightsError

Weights = dict[str, np.ndarray]


RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(0, 0.2, shape).astype(np.float32)


def openelm(heads: tuple[int, ...] = (4, 8), hidden: int = 64, size: int = 16) -> Weights:
    """corenet's state dict of a model whose layers differ in heads and width."""
    weights = {"token_embeddings.weight": normal(96, hidden), "norm.weight": np.ones(hidden, np.float32)}
    for i, count in enumerate(heads):
        layer, width = f"layers.{i}.", 256 * (i + 1)
        weights |= {
            f"{layer}attn.qkv_proj.weight": normal((count + count // 2) * size, hidden),
            f"{layer}attn.q_norm.weight": np.ones(size, np.float32),
            f"{layer}attn.k_norm.weight": np.ones(size, np.float32),
            f"{layer}attn.out_proj.weight": normal(hidden, count * size),
            f"{layer}ffn.proj_1.weight": normal(2 * width, hidden),
            f"{layer}ffn.proj_2.weight": normal(hidden, width),
            f"{layer}attn_norm.weight": np.ones(hidden, np.float32),
            f"{layer}ffn_norm.weight": np.ones(hidden, np.float32),
        }
    return weights


def afm(owners: int = 2, reuse: int = 1, hidden: int = 64, heads: int = 4, kv_heads: int = 2) -> Weights:
    """tamm's state dict, with ranges of the key and value quantisers."""
    size, ffn = hidden // heads, 208
    weights = {
        "embedding.weight": normal(96, hidden),
        "output_norm.weight": np.ones(hidden, np.float32),
        "output_transform.weight": normal(96, hidden),
    }
    for i in range(owners + reuse):
        owns = i < owners
        layer = f"layers.segment_{int(not owns)}.layer_{i if owns else i - owners}." if reuse else f"layers.layer_{i}."
        weights |= {
            f"{layer}attention.norm.weight": np.ones(hidden, np.float32),
            f"{layer}attention.output_transform.weight": normal(hidden, hidden),
            f"{layer}feed_forward.norm.weight": np.ones(hidden, np.float32),
            f"{layer}feed_forward.hidden_transform.linear_0.weight": normal(ffn, hidden),
            f"{layer}feed_forward.hidden_transform.linear_1.weight": normal(ffn, hidden),
            f"{layer}feed_forward.output_transform.weight": normal(hidden, ffn),
        }
        if not owns:
            weights[f"{layer}attention.q_transform.weight"] = normal(hidden, hidden)
            weights[f"{layer}attention.q_norm.query_norm.weight"] = np.ones(size, np.float32)
            continue
        weights[f"{layer}attention.qkv_transform.fused_linear.weight"] = normal(hidden + 2 * kv_heads * size, hidden)
        for part in ("query", "key"):
            weights[f"{layer}attention.qk_norm.{part}_norm.weight"] = np.ones(size, np.float32)
        for part, high in (("key", 2.0), ("value", 0.5)):
            observer = f"{layer}attention.kv_quantizer.{part}_quantizer.activation_post_process."
            weights[f"{observer}range"] = np.array([-1.0, high], np.float32)
            weights[f"{observer}num_samples"] = np.array(7)
    return weights


@pytest.fixture
def save(tmp_path: Path, torch_files) -> Callable[[Weights], Path]:
    def write(weights: Weights) -> Path:
        path = tmp_path / "model.pt"
        path.write_bytes(torch_files.save(weights))
        (tmp_path / "tokenizer.model").write_bytes(b"pieces")
        return path

    return write


def test_corenet_names_and_configuration(tmp_path: Path, save) -> None:
    from mlx_lm.utils import load_model

    weights = openelm()
    buffer = {"layers.0.attn.pos_embedding.inv_freq": np.ones(8, np.float32)}
    report = convert(save(weights | buffer), tmp_path / "dst")
    assert report.kind == "corenet" and report.family == "openelm"
    config = json.loads((tmp_path / "dst" / "config.json").read_text())
    expected = {
        "num_transformer_layers": 2,
        "model_dim": 64,
        "head_dim": 16,
        "num_query_heads": [4, 8],
        "num_kv_heads": [1, 2],
        "ffn_multipliers": [4.0, 8.0],
        "vocab_size": 96,
    }
    assert {key: config[key] for key in expected} == expected
    result = mx.load(str(tmp_path / "dst" / "model.safetensors"))
    assert result.keys() == {f"transformer.{name}" for name in weights}
    assert all(np.array_equal(np.array(result[f"transformer.{name}"]), weights[name]) for name in weights)
    assert (tmp_path / "dst" / "tokenizer.model").read_bytes() == b"pieces"
    model, _ = load_model(tmp_path / "dst")
    assert bool(mx.all(mx.isfinite(model(mx.array([[1, 2, 3]])))))


@pytest.mark.parametrize(
    ("hidden", "layers", "size", "heads", "ffn"),
    [
        (1280, 16, 64, [12] * 3 + [16] * 7 + [20] * 6, (768, 5120)),
        (3072, 36, 128, [12] * 5 + [16] * 9 + [20] * 15 + [24] * 7, (1536, 12288)),
    ],
)
def test_published_sizes(hidden: int, layers: int, size: int, heads: list[int], ffn: tuple[int, int]) -> None:
    """Shapes made by corenet's formulas give the published head counts back, and our family agrees on every shape."""
    from russet.converters.base import SourceTensor
    from russet.converters.corenet import open_corenet
    from russet.converters.expected import check_source

    shapes = {"token_embeddings.weight": (32000, hidden), "norm.weight": (hidden,)}
    for i, count in enumerate(heads):
        width = int(round(0.5 + 3.5 * i / (layers - 1), 2) * hidden + 128) // 256 * 256
        shapes |= {
            f"layers.{i}.attn.qkv_proj.weight": (count * size * 3 // 2, hidden),
            f"layers.{i}.attn.q_norm.weight": (size,),
            f"layers.{i}.attn.k_norm.weight": (size,),
            f"layers.{i}.attn.out_proj.weight": (hidden, count * size),
            f"layers.{i}.ffn.proj_1.weight": (2 * width, hidden),
            f"layers.{i}.ffn.proj_2.weight": (hidden, width),
            f"layers.{i}.attn_norm.weight": (hidden,),
            f"layers.{i}.ffn_norm.weight": (hidden,),
        }
    tensors = [SourceTensor(name, shape, "float32", 4, lambda: mx.zeros(1)) for name, shape in shapes.items()]
    source = open_corenet(Path("x.pt"), tensors)
    assert source.config["num_query_heads"] == heads
    widths = [round(multiplier * hidden) for multiplier in source.config["ffn_multipliers"]]
    assert (widths[0], widths[-1]) == ffn
    check_source(source)


def test_corenet_refusals(tmp_path: Path, save) -> None:
    with pytest.raises(UnsupportedModelError, match="classifier of its own"):
        convert(save(openelm() | {"classifier.weight": normal(96, 64)}), tmp_path / "dst")
    weights = openelm()
    del weights["layers.1.attn.out_proj.weight"]
    with pytest.raises(CheckpointError, match="not a complete OpenELM"):
        convert(save(weights), tmp_path / "dst")


def test_tamm_names_and_configuration(tmp_path: Path, save) -> None:
    from mlx_lm.utils import load_model

    weights = afm()
    report = convert(save(weights), tmp_path / "dst", bits=16)
    assert report.kind == "tamm" and report.family == "afm7" and report.notes == ()
    config = json.loads((tmp_path / "dst" / "config.json").read_text())
    expected = {
        "vocab_size": 96,
        "hidden_dim": 64,
        "num_layers": 3,
        "num_kv_reuse_layers": 1,
        "num_heads": 4,
        "num_kv_heads": 2,
        "hidden_dim_scale_factor": 3.25,
        "rope_theta": 500000.0,
    }
    assert {key: config[key] for key in expected} == expected
    result = mx.load(str(tmp_path / "dst" / "model.safetensors"))
    first, reused = "layers.segment_0.layer_0.", "layers.segment_1.layer_0."
    pairs = {
        "model.embedding.weight": "embedding.weight",
        "model.layers.0.self_attn.qkv_proj.weight": f"{first}attention.qkv_transform.fused_linear.weight",
        "model.layers.0.mlp.gate_proj.weight": f"{first}feed_forward.hidden_transform.linear_0.weight",
        "model.layers.0.mlp.up_proj.weight": f"{first}feed_forward.hidden_transform.linear_1.weight",
        "model.kv_reuse_layers.0.self_attn.q_proj.weight": f"{reused}attention.q_transform.weight",
    }
    for ours, theirs in pairs.items():
        assert np.array_equal(np.array(result[ours]), weights[theirs].astype(np.float16)), ours
    key_scale = result["model.layers.0.self_attn.quant_key_scale"]
    assert key_scale.dtype == mx.float32 and key_scale.shape == ()
    assert key_scale.item() == np.float32(2.0) * np.float32(1 / 127)
    assert result["model.layers.0.self_attn.quant_value_scale"].item() == np.float32(1 / 128)
    model, _ = load_model(tmp_path / "dst")
    assert bool(mx.all(mx.isfinite(model(mx.array([[1, 2, 3]])))))


def test_tamm_without_segments(tmp_path: Path, save) -> None:
    report = convert(save(afm(reuse=0)), tmp_path / "dst")
    config = json.loads((tmp_path / "dst" / "config.json").read_text())
    assert report.forward and config["num_layers"] == 2 and config["num_kv_reuse_layers"] == 0


def test_adapters_that_change_nothing_are_dropped_and_others_refused(tmp_path: Path, save) -> None:
    layer = "layers.segment_0.layer_0."
    wrapped = {}
    for name, value in afm().items():
        name = name.replace("qkv_transform.fused", "qkv_transform.wrapped.fused")
        wrapped[name.replace("hidden_transform.linear_0.weight", "hidden_transform.linear_0.wrapped.weight")] = value
    adapters = {
        f"{layer}attention.qkv_transform.adapters.base.lora_0.a_transpose": normal(64, 4),
        f"{layer}attention.qkv_transform.adapters.base.lora_0.b_transpose": np.zeros((4, 64), np.float32),
        f"{layer}feed_forward.hidden_transform.linear_0.adapters.base.a_transpose": normal(64, 4),
        f"{layer}feed_forward.hidden_transform.linear_0.adapters.base.b_transpose": np.zeros((4, 208), np.float32),
    }
    report = convert(save(wrapped | adapters), tmp_path / "dst")
    assert report.notes == ("left out 4 tensors of adapters that change nothing",)
    plain = convert(save(afm()), tmp_path / "plain")
    assert report.bytes_out == plain.bytes_out
    adapters[f"{layer}feed_forward.hidden_transform.linear_0.adapters.base.b_transpose"][2, 3] = 1e-6
    with pytest.raises(UnsupportedModelError, match="trained adapter 'base'; merge it"):
        convert(save(wrapped | adapters), tmp_path / "refused")


def test_tamm_refusals(tmp_path: Path, save) -> None:
    weights = afm()
    with pytest.raises(UnsupportedModelError, match=r"holds 'vision\.weight', which has no place"):
        convert(save(weights | {"vision.weight": normal(2, 2)}), tmp_path / "dst")
    with pytest.raises(UnsupportedModelError, match=r"holds 'layers\.segment_0\.layer_0\.moe\.weight'"):
        convert(save(weights | {"layers.segment_0.layer_0.moe.weight": normal(2, 2)}), tmp_path / "dst")
    unranged = {name: value for name, value in weights.items() if not name.endswith("range")}
    with pytest.raises(WeightsError, match="quant_key_scale"):
        convert(save(unranged), tmp_path / "dst")
    del weights["layers.segment_0.layer_0.attention.qk_norm.query_norm.weight"]
    with pytest.raises(CheckpointError, match="not a complete AFM"):
        convert(save(weights), tmp_path / "dst")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.pt", "tokenizer.model"]
