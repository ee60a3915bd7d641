"""What every target of `russet convert --to` shares: reading a model by role, options, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from click.testing import CliRunner

from russet.converters import exporting
from russet.converters.convert import convert
from russet.converters.exporting import ExportOptions, export
from russet.converters.model_tensors import ModelTensors
from russet.engine.cli import main
from russet.engine.errors import InvalidOptionError, MissingDependencyError, OutputExistsError, UnsupportedModelError
from russet.models.loading import load_decoder

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize("name", ["llama-bias", "openelm", "afm", "gemma3"])
def test_roles_are_the_rows_that_the_decoder_multiplies(name: str) -> None:
    model, decoder = ModelTensors(GOLDEN / name), load_decoder(GOLDEN / name)
    assert model.config == decoder.config
    x = np.random.default_rng(0).normal(size=(1, 1, model.config.hidden_dim)).astype(np.float32)
    for i, (block, spec) in enumerate(zip(decoder.blocks, model.config.layers, strict=True)):
        parts = ("q", "k", "v") if spec.kv_source is None else ("q",)
        for maps, roles in ((block.project, parts), (block.gate_up, ("gate", "up"))):
            for wanted, part in zip(maps(mx.array(x)), roles, strict=True):
                role = f"layers.{i}.{part}"
                bias = model.bias(role)
                ours = x @ model.dense(role).T + (0 if bias is None else bias)
                np.testing.assert_allclose(ours, np.array(wanted), atol=1e-5)
        model.release(i)


def test_packed_weights_are_read_as_they_are(tmp_path: Path) -> None:
    convert(GOLDEN / "llama", tmp_path / "packed", bits=4, group_size=32, dtype="float16")
    model = ModelTensors(tmp_path / "packed")
    stored = model.stored("layers.0.q")
    assert not isinstance(stored, np.ndarray) and (stored.bits, stored.group_size) == (4, 32)
    assert model.dense("layers.1.down").shape == model.shapes["layers.1.down"]
    config = json.loads(bytes(model.files()["config.json"]))
    assert "quantization" not in config and config["model_type"] == "llama"


def test_down_projections_by_neuron_are_turned(tmp_path: Path) -> None:
    folder = tmp_path / "turned"
    shutil.copytree(GOLDEN / "llama", folder)
    tensors = mx.load(str(folder / "model.safetensors"))
    assert isinstance(tensors, dict)
    turned = {name: array.T if "down_proj" in name else array for name, array in tensors.items()}
    mx.save_safetensors(str(folder / "model.safetensors"), {name: mx.contiguous(a) for name, a in turned.items()})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"ffn_down": "neuron_major"}))
    ours, plain = ModelTensors(folder), ModelTensors(GOLDEN / "llama")
    np.testing.assert_array_equal(ours.dense("layers.0.down"), plain.dense("layers.0.down"))
    (folder / "config.json").write_text(json.dumps(config | {"ffn_thresholds": [0.1] * config["num_hidden_layers"]}))
    with pytest.raises(UnsupportedModelError, match="leaves neurons out below thresholds"):
        ModelTensors(folder)


def test_options_are_checked() -> None:
    with pytest.raises(InvalidOptionError, match="weights is 'int3'; it must be one of float16"):
        ExportOptions(weights="int3")
    with pytest.raises(InvalidOptionError, match="context is 0; it must be at least 1"):
        ExportOptions(context=0)


def test_a_target_is_refused_before_anything_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidOptionError, match="There is no target 'tflite'"):
        export(tmp_path / "absent", tmp_path / "dst", "tflite")
    monkeypatch.setitem(exporting.TARGETS, "test", ("none", ("no_such_library",), "such"))
    with pytest.raises(MissingDependencyError, match=r"no_such_library; install russet\[such\]"):
        export(tmp_path / "absent", tmp_path / "dst", "test")
    monkeypatch.setitem(exporting.TARGETS, "test", ("none", ("json",), "such"))
    (tmp_path / "dst").mkdir()
    with pytest.raises(OutputExistsError):
        export(tmp_path / "absent", tmp_path / "dst", "test")


def test_options_of_one_kind_of_conversion_do_not_apply_to_the_other(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["convert", str(tmp_path / "a"), str(tmp_path / "b"), "--context", "64"])
    assert result.exit_code == 2 and "--context does not apply to --to mlx" in result.stderr
