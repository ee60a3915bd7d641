"""GGUF models -> stock names: what llama.cpp's converter does is done here by hand, and must come undone."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import mlx.core as mx
import numpy as np
import pytest
from gguf.quants import quantize

from russet.converters.convert import convert
from russet.converters.gguf import open_gguf
from russet.converters.gguf_rope import llama3_divisors
from russet.engine.errors import CheckpointError, TokenizerError, UnsupportedModelError, WeightsError

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
GEMMA_NAMES = NAMES | {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def gguf_name(stock: str, model_type: str) -> str:
    table = GEMMA_NAMES if model_type == "gemma3_text" else NAMES
    module, leaf = stock.rsplit(".", 1)
    if module.startswith("model.layers."):
        _, _, i, part = module.split(".", 3)
        return f"blk.{i}.{table[part]}.{leaf}"
    return f"{table[module]}.{leaf}"


def interleave(rows: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's converter does to Llama's query and key projections."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(rows.shape)


class Writer:
    """Writes a GGUF file of a stock configuration; `change(writer)` may add metadata, `kind` is the matrices' type."""

    def __init__(self, folder: Path, weights_of: Callable, shapes_of: Callable) -> None:
        self.folder, self.weights_of, self.shapes_of = folder, weights_of, shapes_of

    def __call__(
        self,
        config: dict[str, Any],
        weights: dict[str, np.ndarray] | None = None,
        kind: str = "F32",
        change: Callable[[gguf.GGUFWriter], None] = lambda writer: None,
        tokens: int | None = None,
    ) -> Path:
        architecture = {"gemma3_text": "gemma3"}.get(config["model_type"], config["model_type"])
        path = self.folder / "model.gguf"
        writer = gguf.GGUFWriter(path, architecture)
        heads, size = config["num_attention_heads"], config["hidden_size"] // config["num_attention_heads"]
        writer.add_context_length(config["max_position_embeddings"])
        writer.add_embedding_length(config["hidden_size"])
        writer.add_block_count(config["num_hidden_layers"])
        writer.add_feed_forward_length(config["intermediate_size"])
        writer.add_head_count(heads)
        writer.add_head_count_kv(config["num_key_value_heads"])
        writer.add_key_length(config.get("head_dim", size))
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
        writer.add_rope_freq_base(config["rope_theta"])
        if tokens != 0:
            add_tokenizer(writer, tokens or config["vocab_size"])
        change(writer)
        for name, array in (weights or self.weights_of(self.shapes_of(config))).items():
            add_tensor(writer, name, array, config, kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path


def add_tokenizer(writer: gguf.GGUFWriter, count: int) -> None:
    tokens = ["<s>", "</s>", *(chr(ord("A") + i) for i in range(count - 3)), "AB"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, *[1] * (count - 2)])
    writer.add_token_merges(["A B"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)


def add_tensor(writer: gguf.GGUFWriter, name: str, array: np.ndarray, config: dict[str, Any], kind: str) -> None:
    if config["model_type"] == "llama" and "q_proj" in name:
        array = interleave(array, config["num_attention_heads"])
    if config["model_type"] == "llama" and "k_proj" in name:
        array = interleave(array, config["num_key_value_heads"])
    if config["model_type"] == "gemma3_text" and "norm" in name:
        array = array + 1
    own = gguf_name(name, config["model_type"])
    if array.ndim == 2:
        qtype = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(own, quantize(array, qtype), raw_dtype=qtype)
    else:
        writer.add_tensor(own, array)


@pytest.fixture
def write(tmp_path: Path, weights_of, shapes_of) -> Writer:
    return Writer(tmp_path, weights_of, shapes_of)


VARIANTS: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama-untied": {"tie_word_embeddings": False},
    "llama-bias": {"attention_bias": True},
    "qwen2": {"model_type": "qwen2"},
    "qwen3": {"model_type": "qwen3", "head_dim": 32},
    "gemma3": {
        "model_type": "gemma3_text",
        "num_hidden_layers": 6,
        "head_dim": 32,
        "sliding_window": 16,
        "query_pre_attn_scalar": 32,
        "hidden_activation": "gelu_pytorch_tanh",
        "rope_theta": 1e6,
    },
}


def add_window(config: dict[str, Any]) -> Callable[[gguf.GGUFWriter], None]:
    return lambda writer: writer.add_sliding_window(16) if "sliding_window" in config else None


@pytest.mark.parametrize("variant", VARIANTS)
def test_weights_and_logits_come_back(tmp_path: Path, write, hf_folder, llama_config, shapes_of, weights_of, variant):
    """mlx-lm answers alike on the stock folder and on what was converted from GGUF."""
    from mlx_lm.utils import load_model

    config = llama_config | VARIANTS[variant]
    weights = weights_of(shapes_of(config))
    convert(write(config, weights, change=add_window(config)), tmp_path / "dst")
    result = mx.load(str(tmp_path / "dst" / "model.safetensors"))
    assert result.keys() == weights.keys()
    for name, array in weights.items():
        assert np.allclose(np.array(result[name]), array, atol=2e-7), name
    tokens = mx.array([[5, 7, 11, 13]])
    logits = [load_model(folder)[0](tokens) for folder in (hf_folder(config, weights), tmp_path / "dst")]
    assert mx.abs(logits[0] - logits[1]).max().item() < 1e-4


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_packed_blocks_stay_bit_for_bit(tmp_path: Path, write, llama_config, kind: str) -> None:
    from mlx_lm.utils import load_model

    path = write(llama_config, kind=kind)
    report = convert(path, tmp_path / "dst")
    assert set(report.errors.values()) == {0.0} or report.errors["norms"] < 1e-3
    bits = {"4": 4, "5": 5, "8": 8}[kind[1]]
    config = json.loads((tmp_path / "dst" / "config.json").read_text())
    assert config["quantization"] == {"group_size": 32, "bits": bits, "mode": "affine"}
    model, _ = load_model(tmp_path / "dst")
    dense = {tensor.name: np.array(tensor.read()) for tensor in open_gguf(path).tensors}
    layer = model.layers[1].self_attn.q_proj
    scales, biases = layer.scales.astype(mx.float32), layer.biases.astype(mx.float32)
    kept = mx.dequantize(layer.weight, scales, biases, 32, bits)
    assert np.array_equal(np.array(kept), dense["model.layers.1.self_attn.q_proj.weight"])
    assert bool(mx.all(mx.isfinite(model(mx.array([[1, 2, 3]])))))


def test_bfloat16_scales_would_not_be_exact(tmp_path: Path, write, llama_config) -> None:
    report = convert(write(llama_config, kind="Q4_0"), tmp_path / "dst", dtype="bfloat16")
    assert report.dtype == "bfloat16" and any("expanded from Q4_0" in note for note in report.notes)
    assert "quantization" not in json.loads((tmp_path / "dst" / "config.json").read_text())


def test_bits_given_requantise_what_differs(tmp_path: Path, write, llama_config) -> None:
    path = write(llama_config, kind="Q8_0")
    convert(path, tmp_path / "four", bits=4)
    config = json.loads((tmp_path / "four" / "config.json").read_text())
    assert config["quantization"] == {"group_size": 64, "bits": 4, "mode": "affine"}
    report = convert(path, tmp_path / "sixteen", bits=16)
    assert report.bits_per_weight == 16
    assert convert(path, tmp_path / "eight", bits=8).errors["attention"] == 0


def test_configuration(write, llama_config) -> None:
    config = open_gguf(write(llama_config)).config
    expected = {key: value for key, value in llama_config.items() if key not in ("torch_dtype", "architectures")}
    assert {key: config[key] for key in expected} == expected
    assert config["bos_token_id"] == 0 and config["eos_token_id"] == 1
    gemma = llama_config | VARIANTS["gemma3"]
    config = open_gguf(write(gemma, change=add_window(gemma))).config
    expected = {"query_pre_attn_scalar": 32, "sliding_window": 16, "rope_local_base_freq": 10000.0}
    assert {key: config[key] for key in expected} == expected
    assert config["model_type"] == "gemma3_text" and config["sliding_window_pattern"] == 6


def test_the_largest_gemma_scales_by_width(write, llama_config) -> None:
    gemma = llama_config | VARIANTS["gemma3"] | {"num_hidden_layers": 62}
    assert open_gguf(write(gemma, change=add_window(gemma))).config["query_pre_attn_scalar"] == 16


def test_rope_scaling(write, llama_config) -> None:
    def linear(writer: gguf.GGUFWriter) -> None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(4.0)

    def yarn(writer: gguf.GGUFWriter) -> None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(2.0)
        writer.add_rope_scaling_orig_ctx_len(32)

    def longrope(writer: gguf.GGUFWriter) -> None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE)

    assert "rope_scaling" not in open_gguf(write(llama_config)).config
    expected = {"rope_type": "linear", "factor": 4.0}
    assert open_gguf(write(llama_config, change=linear)).config["rope_scaling"] == expected
    expected = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32}
    assert open_gguf(write(llama_config, change=yarn)).config["rope_scaling"] == expected
    with pytest.raises(UnsupportedModelError, match="'longrope'"):
        open_gguf(write(llama_config, change=longrope))


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama3_factors_are_recognised(write, llama_config, factor: float) -> None:
    config = llama_config | {"rope_theta": 500000.0, "hidden_size": 512, "max_position_embeddings": 131072}
    divisors = np.array(llama3_divisors(500000.0, 128, factor, 8192))

    def change(writer: gguf.GGUFWriter) -> None:
        writer.add_tensor("rope_freqs.weight", divisors.astype(np.float32))

    assert open_gguf(write(config, change=change)).config["rope_scaling"] == {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }

    def other(writer: gguf.GGUFWriter) -> None:
        writer.add_tensor("rope_freqs.weight", (divisors * np.linspace(1, 1.1, 64)).astype(np.float32))

    with pytest.raises(UnsupportedModelError, match="not Llama 3's published rule"):
        open_gguf(write(config, change=other))


def test_what_is_refused(tmp_path: Path, write, llama_config, shapes_of, weights_of) -> None:
    weights = weights_of(shapes_of(llama_config))
    with pytest.raises(UnsupportedModelError, match="'phi3' model; from GGUF Russet converts llama"):
        open_gguf(write({**llama_config, "model_type": "phi3"}, weights))
    with pytest.raises(UnsupportedModelError, match="mixture of experts"):
        open_gguf(write(llama_config, change=lambda writer: writer.add_expert_count(8)))
    with pytest.raises(UnsupportedModelError, match=r"holds the tensor 'blk\.0\.attn_sinks\.weight'"):
        open_gguf(
            write(llama_config, change=lambda w: w.add_tensor("blk.0.attn_sinks.weight", np.zeros(4, np.float32)))
        )
    with pytest.raises(UnsupportedModelError, match="rotates 8 of 16"):
        open_gguf(write(llama_config, change=lambda writer: writer.add_rope_dimension_count(8)))
    with pytest.raises(UnsupportedModelError, match="keys and values of different sizes"):
        open_gguf(write(llama_config, change=lambda writer: writer.add_value_length(8)))
    with pytest.raises(TokenizerError, match="holds no tokenizer"):
        open_gguf(write(llama_config, tokens=0))
    gemma = llama_config | VARIANTS["gemma3"]
    with pytest.raises(UnsupportedModelError, match="softcapping"):
        open_gguf(write(gemma, change=lambda writer: writer.add_final_logit_softcapping(30.0)))


def test_a_file_that_lacks_a_tensor_leaves_nothing(tmp_path: Path, write, llama_config, shapes_of, weights_of) -> None:
    weights = weights_of(shapes_of(llama_config))
    del weights["model.layers.1.mlp.up_proj.weight"]
    with pytest.raises(WeightsError, match=r"lacks the tensor 'model\.layers\.1\.mlp\.up_proj\.weight'"):
        convert(write(llama_config, weights), tmp_path / "dst")
    del weights["model.embed_tokens.weight"]
    with pytest.raises(CheckpointError, match="no tensor token_embd"):
        convert(write(llama_config, weights), tmp_path / "dst")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.gguf"]


def test_a_file_cut_short_leaves_nothing(tmp_path: Path, write, llama_config) -> None:
    path = write(llama_config, kind="Q4_0")
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(CheckpointError, match="cut short or damaged"):
        convert(path, tmp_path / "dst")
    assert [p.name for p in tmp_path.iterdir()] == ["model.gguf"]
