"""Opening model folders: what is refused, in which words, and the mlx-lm fallback."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import russet
from russet.engine.errors import (
    CheckpointError,
    InvalidOptionError,
    MissingDependencyError,
    ModelNotFoundError,
    RussetError,
    TokenizerError,
    UnsafeCheckpointError,
    UnsupportedModelError,
    WeightsError,
)
from russet.models.loading import load_decoder


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def edit_weights(folder: Path, **changes: mx.array | None) -> None:
    path = str(folder / "model.safetensors")
    tensors = mx.load(path)
    assert isinstance(tensors, dict)
    merged = {**tensors, **{name.replace("__", "."): value for name, value in changes.items()}}
    mx.save_safetensors(path, {name: value for name, value in merged.items() if value is not None})


def refused(folder: Path) -> str:
    """The one sentence that loading fails with; the folder is left as it was."""
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(RussetError) as caught:
        russet.load(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    message = str(caught.value)
    assert "\n" not in message
    return f"{type(caught.value).__name__}: {message}"


def test_a_folder_that_is_not_there_or_not_a_model(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError):
        russet.load("smollm2-135")
    with pytest.raises(ModelNotFoundError, match=r"no config\.json"):
        load_decoder(tmp_path)


def test_a_damaged_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "lla')
    assert refused(folder).startswith("CheckpointError: ")
    (folder / "config.json").write_text("[]")
    assert "is not a JSON object" in refused(folder)
    (folder / "config.json").write_text("[" * 100_000)
    assert "is not valid JSON" in refused(folder)


@pytest.mark.parametrize("key", ["model_type", "quantization", "quantization_config"])
def test_keys_that_every_reader_looks_at_have_one_type(folder: Path, key: str) -> None:
    edit_config(folder, **{key: ["x"]})
    assert f"has {key} = ['x']; " in refused(folder)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"hidden_size": None}, "has no 'hidden_size'; it must be a whole number"),
        ({"hidden_size": "64"}, "has hidden_size = '64'; it must be a whole number"),
        ({"num_hidden_layers": 0}, "num_hidden_layers = 0; it must be above zero"),
        ({"hidden_act": "xielu"}, "hidden_act = 'xielu'"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 4.0}}, "rope scaling 'longrope'"),
        ({"rope_scaling": {"type": "linear"}}, "without the 'factor'"),
        ({"quantization_config": {"quant_method": "gptq"}}, "'gptq' quantisation"),
        ({"rope_theta": 1.0}, "rope theta 1.0; a number above 1, at most 1e+15, is expected"),
        ({"rope_scaling": {"type": "linear", "factor": 1e308}}, "at most 1e+06, is expected"),
        (
            {"rope_scaling": {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0}},
            "low_freq_factor 4.0 and high_freq_factor 4.0",
        ),
    ],
)
def test_a_configuration_that_is_not_implemented_is_refused_by_name(folder: Path, change: dict, expected: str) -> None:
    edit_config(folder, **change)
    message = refused(folder)
    assert message.startswith("UnsupportedModelError: ") and expected in message


def test_missing_misshapen_and_mistyped_tensors_are_named(folder: Path, tiny_folder: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    edit_weights(folder, model__layers__1__mlp__up_proj__weight=None)
    assert f"no tensor {name}" in refused(folder)
    edit_weights(folder, model__layers__1__mlp__up_proj__weight=mx.zeros((64, 96)))
    message = refused(folder)
    assert f"{name} in" in message and "shape (64, 96); its config.json asks for (96, 64)" in message
    edit_weights(folder, model__layers__1__mlp__up_proj__weight=mx.zeros((96, 64), dtype=mx.int32))
    assert "a floating-point tensor is expected" in refused(folder)


def test_packed_weights_that_contradict_the_config(folder: Path) -> None:
    packed = mx.quantize(mx.random.normal((96, 64)), group_size=32, bits=4)
    parts = dict(zip(("weight", "scales", "biases"), packed, strict=True))
    edit_weights(folder, **{f"model__layers__1__mlp__up_proj__{part}": value for part, value in parts.items()})
    assert "does not say group_size and bits" in refused(folder)
    edit_config(folder, quantization={"group_size": 64, "bits": 4})
    assert "not a 4-bit tensor of shape (96, 64) in groups of 64" in refused(folder)
    edit_config(folder, quantization={"group_size": 32, "bits": 4, "mode": "mxfp4"})
    assert "mode 'mxfp4'" in refused(folder)
    edit_config(folder, quantization={"group_size": 32, "bits": 4})
    assert russet.load(folder).generate("x", max_tokens=2).prompt_tokens > 0


@pytest.mark.parametrize(
    "wrong", [{"group_size": 0}, {"group_size": None}, {"bits": "x"}, {"bits": 1e308}, {"bits": []}]
)
def test_packings_that_do_not_exist_are_refused(folder: Path, wrong: dict) -> None:
    packed = mx.quantize(mx.random.normal((96, 64)), group_size=32, bits=4)
    parts = dict(zip(("weight", "scales", "biases"), packed, strict=True))
    edit_weights(folder, **{f"model__layers__1__mlp__up_proj__{part}": value for part, value in parts.items()})
    edit_config(folder, quantization={"group_size": 32, "bits": 4} | wrong)
    message = refused(folder)
    assert "up_proj is quantised to " in message and "bits in groups of 32, 64 or 128" in message
    assert len(message) < 400


def test_damaged_weights_and_an_index_that_leaves_the_folder(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    assert refused(folder).startswith(CheckpointError.__name__)
    index = {"weight_map": {"a": "../../etc/passwd"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert refused(folder).startswith(UnsafeCheckpointError.__name__)


def test_a_missing_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    assert refused(folder).startswith(TokenizerError.__name__)


def test_quantised_weights_are_expanded_on_a_cpu_and_give_the_same_logits(folder: Path, tiny_folder: Path) -> None:
    tensors = mx.load(str(tiny_folder / "model.safetensors"))
    assert isinstance(tensors, dict)
    rounded: dict[str, mx.array] = {}
    packed: dict[str, mx.array] = {}
    for name, tensor in tensors.items():
        if tensor.ndim < 2:
            rounded[name] = packed[name] = tensor
            continue
        parts = mx.quantize(tensor, group_size=32, bits=4)
        base = name.removesuffix(".weight")
        packed.update({f"{base}.{part}": a for part, a in zip(("weight", "scales", "biases"), parts, strict=True)})
        rounded[name] = mx.dequantize(*parts, group_size=32, bits=4)
    logits = []
    for weights, quantization in ((rounded, None), (packed, {"group_size": 32, "bits": 4})):
        mx.save_safetensors(str(folder / "model.safetensors"), weights)
        edit_config(folder, quantization=quantization)
        decoder = load_decoder(folder)
        out = decoder.extend(mx.array([[1, 2, 3]]), decoder.new_cache())
        assert out is not None
        logits.append(np.array(out))
    assert np.array_equal(*logits)


OLMO2 = {
    "model_type": "olmo2",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "rms_norm_eps": 1e-5,
    "vocab_size": 259,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
}


@pytest.fixture
def foreign(folder: Path) -> Path:
    """An architecture without a family here, which mlx-lm has."""
    from mlx.utils import tree_flatten
    from mlx_lm.models.olmo2 import Model, ModelArgs

    model = Model(ModelArgs.from_dict(OLMO2))
    (folder / "config.json").write_text(json.dumps(OLMO2))
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())))
    return folder


def test_other_architectures_run_through_mlx_lm_and_say_so(foreign: Path, caplog: pytest.LogCaptureFixture) -> None:
    from mlx_lm.utils import load_model

    model = russet.load(foreign)
    assert "olmo2 through mlx-lm (exact prefill only" in model.card
    assert [record.message for record in caplog.records if "through mlx-lm" in record.message]
    peer, _ = load_model(foreign)
    tokens = model.encode("Some text", raw=True)
    for _ in range(6):
        tokens.append(int(np.argmax(np.array(peer(mx.array([tokens])))[0, -1])))
    assert model.generate("Some text", raw=True, max_tokens=6).tokens == tokens[-6:]


def test_sessions_reuse_and_keep_their_words_through_mlx_lm(foreign: Path, tmp_path: Path) -> None:
    model = russet.load(foreign)
    session = model.session(max_tokens=4)
    session.respond("One?")
    assert session.respond("Two?").timings.cached_tokens > 0
    session.save(tmp_path / "talk.russet")
    again = model.load_session(tmp_path / "talk.russet", max_tokens=4)
    assert again.messages == session.messages
    assert again.respond("Three?").tokens == session.respond("Three?").tokens
    with pytest.raises(InvalidOptionError, match="runs through mlx-lm"):
        russet.load(foreign, kv_bits=8).generate("x")


def test_an_unknown_architecture_and_a_missing_mlx_lm(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edit_config(folder, model_type="frobnicator")
    assert "'frobnicator', which neither Russet nor mlx-lm implements" in refused(folder)
    edit_config(folder, model_type="../evil")
    assert refused(folder).startswith(UnsupportedModelError.__name__)
    monkeypatch.setitem(sys.modules, "russet.models.fallback", None)
    assert refused(folder).startswith(MissingDependencyError.__name__)
    assert "russet[mlx-lm]" in refused(folder)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"num_hidden_layers": 1}, "WeightsError: mlx-lm could not load "),
        (
            {"num_hidden_layers": 10**12},
            "UnsupportedModelError: config.json has num_hidden_layers = 1000000000000",
        ),
        ({"intermediate_size": 0}, "WeightsError: mlx-lm could not load "),
        ({"rope_scaling": "x"}, "WeightsError: mlx-lm could not load "),
        ({"vocab_size": -1}, "WeightsError: mlx-lm could not load "),
        ({"max_position_embeddings": "x"}, "UnsupportedModelError: config.json has max_position_embeddings = 'x'"),
    ],
)
def test_foreign_configurations_that_cannot_be_are_one_sentence(foreign: Path, change: dict, told: str) -> None:
    edit_config(foreign, **change)
    message = refused(foreign)
    assert message.startswith(told) and len(message) < 400


def test_a_foreign_model_that_does_not_run_is_one_sentence(foreign: Path) -> None:
    edit_config(foreign, rope_theta="x")
    with pytest.raises(WeightsError, match=r"^mlx-lm could not run this model \(.*\); check its config\.json\.$"):
        russet.load(foreign).generate("x", max_tokens=2)


def test_foreign_weights_that_do_not_fit(foreign: Path) -> None:
    edit_config(foreign, hidden_size=64)
    assert refused(foreign).startswith(WeightsError.__name__)


def test_weights_too_large_to_expand_stay_packed_and_say_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tensors = mx.load(str(folder / "model.safetensors"))
    assert isinstance(tensors, dict)
    packed: dict[str, mx.array] = {}
    for name, tensor in tensors.items():
        if tensor.ndim < 2:
            packed[name] = tensor
            continue
        parts = mx.quantize(tensor, group_size=32, bits=8)
        base = name.removesuffix(".weight")
        packed.update({f"{base}.{part}": a for part, a in zip(("weight", "scales", "biases"), parts, strict=True)})
    mx.save_safetensors(str(folder / "model.safetensors"), packed)
    edit_config(folder, quantization={"group_size": 32, "bits": 8})
    logits = []
    for memory in (1 << 30, 1000):
        monkeypatch.setattr("russet.models.loading.memory_bytes", lambda memory=memory: memory)
        decoder = load_decoder(folder)
        out = decoder.extend(mx.array([[1, 2, 3]]), decoder.new_cache())
        assert out is not None
        logits.append(np.array(out))
    assert [record.message for record in caplog.records if "stay packed" in record.message]
    assert np.abs(logits[0] - logits[1]).max() < 1e-4
