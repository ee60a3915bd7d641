"""Kinds of checkpoints are recognised, Hugging Face folders convert, and what does not fit is refused in a sentence."""

import json
import re
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from russet.converters.convert import convert
from russet.engine.errors import (
    CheckpointError,
    UnsafeCheckpointError,
    UnsupportedModelError,
    WeightsError,
)


def loaded(folder: Path) -> dict[str, mx.array]:
    return {name: value for path in folder.glob("*.safetensors") for name, value in mx.load(str(path)).items()}


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3", "gemma3_text"])
def test_families_convert_exactly_and_load_in_mlx_lm(
    tmp_path: Path, hf_folder, llama_config, weights_of, shapes_of, model_type: str
) -> None:
    from mlx_lm.utils import load_model

    config = llama_config | {"model_type": model_type, "head_dim": 16, "num_hidden_layers": 6, "sliding_window": 32}
    if model_type != "gemma3_text":
        del config["sliding_window"]
    weights = weights_of(shapes_of(config))
    report = convert(hf_folder(config, weights), tmp_path / "dst")
    assert report.family == model_type and report.dtype == "float32" and report.forward
    assert set(report.errors.values()) == {0.0}
    result = loaded(tmp_path / "dst")
    assert result.keys() == weights.keys()
    assert all(np.array_equal(np.array(result[name]), weights[name]) for name in weights)
    model, _ = load_model(tmp_path / "dst")
    assert bool(mx.all(mx.isfinite(model(mx.array([[1, 2, 3]])))))


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_sixteen_bit_checkpoints_keep_their_format(tmp_path: Path, hf_folder, llama_config, dtype) -> None:
    src = hf_folder(llama_config, dtype=dtype)
    report = convert(src, tmp_path / "dst")
    result = loaded(tmp_path / "dst")
    assert all(mx.array_equal(value, result[name]) for name, value in loaded(src).items())
    assert report.dtype == str(dtype).removeprefix("mlx.core.") and report.bits_per_weight == 16
    assert json.loads((tmp_path / "dst" / "config.json").read_text())["torch_dtype"] == report.dtype


def test_pickled_folders_single_and_sharded(tmp_path: Path, llama_config, weights_of, shapes_of, torch_files) -> None:
    weights = weights_of(shapes_of(llama_config))
    names = sorted(weights)
    parts = {"pytorch_model-1.bin": names[:5], "pytorch_model-2.bin": names[5:]}
    single, sharded = tmp_path / "single", tmp_path / "sharded"
    for folder in (single, sharded):
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(llama_config))
    (single / "pytorch_model.bin").write_bytes(torch_files.save(weights))
    for file, held in parts.items():
        (sharded / file).write_bytes(torch_files.save({name: weights[name] for name in held}))
    index = {"weight_map": {name: file for file, held in parts.items() for name in held}}
    (sharded / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    for folder in (single, sharded):
        report = convert(folder, tmp_path / f"{folder.name}-dst")
        assert report.kind == "PyTorch" and any("no tokenizer" in note for note in report.notes)
        result = loaded(tmp_path / f"{folder.name}-dst")
        assert all(np.array_equal(np.array(result[name]), weights[name]) for name in weights)


def test_what_models_make_themselves_is_left_out(
    tmp_path: Path, hf_folder, llama_config, weights_of, shapes_of
) -> None:
    weights = weights_of(shapes_of(llama_config))
    extra = {
        "lm_head.weight": weights["model.embed_tokens.weight"],
        "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32),
    }
    report = convert(hf_folder(llama_config, weights | extra), tmp_path / "dst")
    assert loaded(tmp_path / "dst").keys() == weights.keys()
    assert report.notes == (f"left out what models make themselves: {', '.join(sorted(extra))}",)


def test_tensors_that_do_not_fit(tmp_path: Path, hf_folder, llama_config, weights_of, shapes_of) -> None:
    whole = weights_of(shapes_of(llama_config))
    name = "model.layers.1.self_attn.k_proj.weight"
    cases = {
        "missing": ({key: value for key, value in whole.items() if key != name}, f"lacks the tensor '{name}'"),
        "shape": (
            whole | {name: whole[name][:16]},
            f"'{name}' has shape (16, 64); the configuration asks for (32, 64)",
        ),
        "extra": (whole | {"vision.weight": whole[name]}, "1 tensors that a llama model has no place for"),
        "nan": (whole | {name: np.full((32, 64), np.nan, np.float32)}, f"'{name}' holds values that are not finite"),
        "huge": (whole | {name: whole[name] * 1e6}, "--dtype bfloat16"),
    }
    for case, (weights, message) in cases.items():
        with pytest.raises(WeightsError, match=re.escape(message)):
            convert(hf_folder(llama_config, weights, name=case), tmp_path / "dst", dtype="float16")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(cases)


def test_architectures_that_are_not_ours(tmp_path: Path, hf_folder, llama_config) -> None:
    unknown = hf_folder(llama_config | {"model_type": "nonesuch"}, {"x": np.ones(2, np.float32)}, "a")
    with pytest.raises(UnsupportedModelError, match="'nonesuch'; Russet implements afm7, gemma3_text, llama"):
        convert(unknown, tmp_path / "dst")
    borrowed = hf_folder(llama_config | {"model_type": "phi3"}, {"x": np.ones(2, np.float32)}, "b")
    with pytest.raises(UnsupportedModelError, match=r"no converter for 'phi3'.*runs it through mlx-lm"):
        convert(borrowed, tmp_path / "dst")
    for key, value in (("quantization", {"bits": 4}), ("quantization_config", {"quant_method": "gptq"})):
        packed = hf_folder(llama_config | {key: value}, {"x": np.ones(2, np.float32)}, key)
        with pytest.raises(UnsupportedModelError, match=r"quantised already .(MLX|gptq)"):
            convert(packed, tmp_path / "dst")
    assert not (tmp_path / "dst").exists()


def test_folders_without_a_model(tmp_path: Path, llama_config) -> None:
    folder = tmp_path / "src"
    with pytest.raises(CheckpointError, match="does not exist"):
        convert(folder, tmp_path / "dst")
    folder.mkdir()
    with pytest.raises(CheckpointError, match=r"no config\.json and no checkpoint"):
        convert(folder, tmp_path / "dst")
    (folder / "config.json").write_text(json.dumps(llama_config))
    with pytest.raises(CheckpointError, match="but no weights"):
        convert(folder, tmp_path / "dst")
    for text in ("{", "[]", "[" * 100_000):
        (folder / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"not valid JSON|not a JSON object"):
            convert(folder, tmp_path / "dst")
    (folder / "config.json").unlink()
    for name in ("a.pt", "b.pt"):
        (folder / name).touch()
    with pytest.raises(CheckpointError, match=r"several checkpoints .a\.pt, b\.pt.; name the one"):
        convert(folder, tmp_path / "dst")
    assert [path.name for path in tmp_path.iterdir()] == ["src"]


def test_files_of_no_known_kind(tmp_path: Path, torch_files) -> None:
    (tmp_path / "a.pt").write_bytes(torch_files.save({"model.embed_tokens.weight": np.ones((2, 2), np.float32)}))
    with pytest.raises(UnsupportedModelError, match="neither corenet's OpenELM nor tamm's AFM"):
        convert(tmp_path / "a.pt", tmp_path / "dst")
    (tmp_path / "b.gguf").write_bytes(b"junk")
    with pytest.raises(CheckpointError, match="not a complete GGUF"):
        convert(tmp_path / "b.gguf", tmp_path / "dst")


def test_hostile_folders(tmp_path: Path, hf_folder, llama_config, torch_files) -> None:
    mark = tmp_path / "ran"
    src = hf_folder(llama_config)
    (src / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "../secret"}}))
    with pytest.raises(UnsafeCheckpointError, match="outside the folder"):
        convert(src, tmp_path / "dst")
    (src / "model.safetensors.index.json").unlink()
    (src / "model.safetensors").unlink()
    (src / "pytorch_model.bin").write_bytes(
        torch_files.archive({"x": torch_files.Call("os.system", f"touch {mark}")}, {})
    )
    with pytest.raises(UnsafeCheckpointError, match=r"asks to run os\.system"):
        convert(src, tmp_path / "dst")
    (src / "pytorch_model.bin").unlink()
    (src / "model.safetensors").write_bytes((1 << 40).to_bytes(8, "little") + b"{}")
    with pytest.raises(CheckpointError, match="over the limit"):
        convert(src, tmp_path / "dst")
    (src / "tokenizer.model").symlink_to("/etc/hostname")
    mx.save_safetensors(str(src / "model.safetensors"), {"x": mx.ones(2)})
    with pytest.raises(UnsafeCheckpointError, match="link to"):
        convert(src, tmp_path / "dst")
    assert [path.name for path in tmp_path.iterdir()] == ["src"]


def test_a_tensor_in_two_files(tmp_path: Path, hf_folder, llama_config) -> None:
    src = hf_folder(llama_config)
    (src / "model-extra.safetensors").write_bytes((src / "model.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="Two weight files"):
        convert(src, tmp_path / "dst")
