from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from click.testing import CliRunner

from russet.converters.sparsify import _turn, sparsify
from russet.converters.thresholds import calibrate
from russet.engine.cli import main
from russet.engine.errors import InvalidOptionError, OutputExistsError, WeightsError
from russet.models.config_file import read_config
from russet.models.loading import load_decoder

TEXT = "Fifteen foxes ran over a field of oats, and none of them was seen again. " * 3
TOKENS = list(TEXT.encode())


def edited(folder: Path, dst: Path, **changes) -> Path:
    shutil.copytree(folder, dst)
    (dst / "config.json").write_text(json.dumps({**read_config(folder), **changes}))
    return dst


@pytest.fixture
def packed_relu(tiny_folder: Path, tmp_path: Path) -> Path:
    """The tiny model with ReLU and down projections of 4 bits."""
    folder = edited(tiny_folder, tmp_path / "relu", hidden_act="relu", quantization={"group_size": 32, "bits": 4})
    tensors = mx.load(str(folder / "model.safetensors"))
    assert isinstance(tensors, dict)
    for name in [name for name in tensors if name.endswith("down_proj.weight")]:
        stem = name.removesuffix(".weight")
        parts = mx.quantize(tensors.pop(name), 32, 4)
        tensors.update(
            {f"{stem}.{part}": array for part, array in zip(("weight", "scales", "biases"), parts, strict=True)}
        )
    mx.eval(tensors)
    mx.save_safetensors(str(folder / "model.safetensors"), tensors)
    return folder


def test_a_threshold_lies_above_its_share_of_activations(tiny_folder):
    decoder = load_decoder(tiny_folder)
    gates = [block.gate for block in decoder.blocks]
    thresholds = calibrate(decoder, TOKENS, 0.5)
    assert [block.gate for block in decoder.blocks] == gates
    seen = []
    block = decoder.blocks[0]
    block.gate = lambda x, up: seen.append(np.abs(np.array(x * mx.sigmoid(x)))) or gates[0](x, up)
    decoder.extend(mx.array([TOKENS]), decoder.new_cache(), logits=len(TOKENS))
    sizes = seen[0][0, 1:]
    assert np.mean(sizes <= thresholds[0] * 1.001) >= 0.5
    assert np.mean(sizes <= thresholds[0] * 0.99) < 0.5
    more = calibrate(load_decoder(tiny_folder), TOKENS, 0.8)
    assert all(high > low for high, low in zip(more, thresholds, strict=True))


def test_the_first_token_of_a_window_does_not_count(tiny_folder, monkeypatch):
    """Two windows of 20 and 16 tokens."""
    monkeypatch.setattr("russet.converters.thresholds.WINDOW", 20)
    decoder = load_decoder(tiny_folder)
    (threshold, *_), seen = calibrate(decoder, TOKENS[:36], 0.5), []
    gate = decoder.blocks[0].gate
    decoder.blocks[0].gate = lambda x, up: seen.append(np.array(mx.abs(x * mx.sigmoid(x))[0, 1:])) or gate(x, up)
    for window in (TOKENS[:20], TOKENS[20:36]):
        decoder.extend(mx.array([window]), decoder.new_cache(), logits=len(window))
    sizes = np.sort(np.concatenate(seen).astype(np.float16).ravel())
    assert sizes.size == 34 * 96
    assert threshold == pytest.approx(float(sizes[sizes.size // 2 - 1]), rel=1e-6)


@pytest.mark.parametrize(
    ("tokens", "sparsity"), [(TOKENS, 0.0), (TOKENS, 1.0), (TOKENS[:31], 0.5), ([*TOKENS, 259], 0.5)]
)
def test_no_share_and_no_text_are_refused(tiny_folder, tokens, sparsity):
    with pytest.raises(InvalidOptionError, match=r"must be between 0 and 1|give a longer text|token id 259"):
        calibrate(load_decoder(tiny_folder), tokens, sparsity)


def test_damaged_weights_give_no_thresholds(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "damaged")
    tensors = mx.load(str(folder / "model.safetensors"))
    assert isinstance(tensors, dict)
    tensors["model.layers.1.mlp.gate_proj.weight"][5, 1] = math.nan
    mx.save_safetensors(str(folder / "model.safetensors"), tensors)
    with pytest.raises(WeightsError, match="activations are not numbers"):
        sparsify(folder, tmp_path / "sparse", sparsity=0.5, text=TEXT)
    assert not (tmp_path / "sparse").exists()


def test_thresholds_go_into_a_folder_of_their_own(tiny_folder, tmp_path):
    report = sparsify(tiny_folder, tmp_path / "sparse", sparsity=0.5, text=TEXT)
    config = read_config(tmp_path / "sparse")
    assert config.pop("ffn_thresholds") == list(report.thresholds)
    assert config == read_config(tiny_folder)
    assert {file.name for file in tiny_folder.iterdir()} == {file.name for file in (tmp_path / "sparse").iterdir()}
    assert (report.turned, report.error, report.tokens) == (0, 0.0, len(TOKENS))
    assert sparsify(tiny_folder, tmp_path / "few", sparsity=0.5, text=TEXT, tokens=40).tokens == 40


def test_packed_down_projections_are_turned(packed_relu, tmp_path):
    report = sparsify(packed_relu, tmp_path / "sparse")
    assert read_config(tmp_path / "sparse")["ffn_down"] == "neuron_major"
    assert report.turned == 3
    before, after = (mx.load(str(folder / "model.safetensors")) for folder in (packed_relu, tmp_path / "sparse"))
    stem = "model.layers.1.mlp.down_proj"
    old, new = (
        mx.dequantize(*(tensors[f"{stem}.{part}"] for part in ("weight", "scales", "biases")), 32, 4)
        for tensors in (before, after)
    )
    assert new.shape == old.shape[::-1]
    error = float((mx.linalg.norm(new.T - old) / mx.linalg.norm(old)).item())
    assert 0 < error <= report.error < 0.15
    name = "model.layers.1.mlp.up_proj.weight"
    assert mx.array_equal(before[name], after[name])


def test_projections_that_are_not_alike_are_refused(packed_relu, tmp_path):
    tensors = mx.load(str(packed_relu / "model.safetensors"))
    assert isinstance(tensors, dict)
    stem = "model.layers.1.mlp.down_proj"
    parts = [tensors.pop(f"{stem}.{part}") for part in ("weight", "scales", "biases")]
    tensors[f"{stem}.weight"] = mx.dequantize(*parts, 32, 4)
    mx.eval(tensors)
    mx.save_safetensors(str(packed_relu / "model.safetensors"), tensors)
    with pytest.raises(InvalidOptionError, match="are packed and some are not"):
        sparsify(packed_relu, tmp_path / "sparse")
    assert not (tmp_path / "sparse").exists()


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("scales", lambda array: array[:, :1]),
        ("scales", lambda array: array * math.nan),
        ("weight", lambda array: array[:10]),
        ("weight", lambda array: array.astype(mx.float32)),
        ("biases", None),
    ],
)
def test_damaged_projections_are_refused(packed_relu, tmp_path, part, change):
    tensors = mx.load(str(packed_relu / "model.safetensors"))
    assert isinstance(tensors, dict)
    array = tensors.pop(f"model.layers.1.mlp.down_proj.{part}")
    mx.eval(tensors)
    if change:
        tensors[f"model.layers.1.mlp.down_proj.{part}"] = change(array)
    mx.save_safetensors(str(packed_relu / "model.safetensors"), tensors)
    with pytest.raises(WeightsError, match=r"down_proj"):
        sparsify(packed_relu, tmp_path / "sparse")
    assert not (tmp_path / "sparse").exists()


def test_outputs_that_make_no_groups_are_refused():
    """64 outputs make no group of the 128 that inputs are packed in."""
    packed = mx.quantize(mx.ones((64, 256)), 128, 4)
    tensors = {f"down.{part}": array for part, array in zip(("weight", "scales", "biases"), packed, strict=True)}
    with pytest.raises(InvalidOptionError, match="do not divide into groups of 128"):
        _turn(tensors, "down", {"group_size": 128, "bits": 4})


def test_nothing_to_do_is_said_and_nothing_is_left(tiny_folder, tmp_path):
    with pytest.raises(InvalidOptionError, match="have no ReLU"):
        sparsify(tiny_folder, tmp_path / "sparse")
    assert not list(tmp_path.iterdir())


def test_ffns_that_stay_dense_are_refused(tiny_folder, tmp_path):
    folder = edited(tiny_folder, tmp_path / "bias", hidden_act="relu", mlp_bias=True)
    with pytest.raises(InvalidOptionError, match="a bias or a norm behind them"):
        sparsify(folder, tmp_path / "sparse")


def test_an_existing_folder_is_left_alone(tiny_folder, tmp_path):
    with pytest.raises(OutputExistsError):
        sparsify(tiny_folder, tmp_path, sparsity=0.5, text=TEXT)


def test_the_command_says_what_was_written(tiny_folder, tmp_path):
    (tmp_path / "text").write_text(TEXT)
    arguments = ["sparsify", str(tiny_folder), str(tmp_path / "a"), "--sparsity", "0.5"]
    assert CliRunner().invoke(main, arguments).exit_code == 2
    shown = CliRunner().invoke(main, [*arguments, "--text", str(tmp_path / "text")])
    assert shown.exit_code == 0
    assert f"Wrote {tmp_path / 'a'}: thresholds from " in shown.output
    arguments[2] = str(tmp_path / "b")
    shown = CliRunner().invoke(main, [*arguments, "--text", str(tmp_path / "text"), "--json"])
    assert len(json.loads(shown.output)["thresholds"]) == 3
    shown = CliRunner().invoke(main, [*arguments[:2], str(tmp_path / "c"), "--sparsity", "0.5", "--text", "missing"])
    assert shown.exit_code == 1


def test_a_name_of_the_catalog_is_a_source_too(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("russet.models.download.obtain", lambda name, progress: tiny_folder)
    (tmp_path / "text").write_text(TEXT)
    options = ["--sparsity", "0.5", "--text", str(tmp_path / "text")]
    shown = CliRunner().invoke(main, ["sparsify", "smollm2-135m", str(tmp_path / "a"), *options])
    assert shown.exit_code == 0 and (tmp_path / "a" / "config.json").exists()
    shown = CliRunner().invoke(main, ["sparsify", "nosuch", str(tmp_path / "b"), *options])
    assert shown.exit_code == 1 and isinstance(shown.exception, SystemExit)
