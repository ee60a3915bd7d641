"""Logits equal those of libraries that Russet does not come from: tests/golden/, written by tests/parity/run.py."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from russet.converters.convert import convert
from russet.models import loading
from russet.models.activations import gated
from russet.models.families import FAMILIES

GOLDEN = Path(__file__).parents[1] / "golden"
TOLERANCE = 1e-4
"""float32; the references differ from themselves by up to 2e-5 when fed in other pieces."""

FOLDERS = sorted(path.parent for path in GOLDEN.glob("*/expected.safetensors"))
SPELLINGS = [(folder, path.name) for folder in FOLDERS for path in sorted(folder.glob("config*.json"))]


def expected(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    tensors = mx.load(str(folder / "expected.safetensors"))
    assert isinstance(tensors, dict)
    return np.array(tensors["tokens"]), np.array(tensors["logits"])


def logits(folder: Path, tokens: np.ndarray, step: int) -> np.ndarray:
    """[len(tokens), vocab], fed `step` tokens at a time through one cache."""
    decoder = loading.load_decoder(folder, dtype="float32")
    cache = decoder.new_cache()
    pieces = []
    for start in range(0, len(tokens), step):
        chunk = mx.array(tokens[start : start + step])[None]
        output = decoder.extend(chunk, cache, logits=chunk.shape[1])
        assert output is not None
        pieces.append(np.array(output[0]))
    return np.concatenate(pieces)


def difference(folder: Path, step: int) -> float:
    tokens, wanted = expected(folder)
    return float(np.abs(logits(folder, tokens, step) - wanted).max())


def with_config(folder: Path, config: dict[str, Any], target: Path) -> Path:
    """The golden checkpoint under another configuration."""
    for name in ("model.safetensors", "expected.safetensors"):
        shutil.copy(folder / name, target / name)
    (target / "config.json").write_text(json.dumps(config))
    return target


@pytest.mark.parametrize("step", [32, 11, 5, 1], ids=["whole", "chunks of 11", "chunks of 5", "token by token"])
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_logits_equal_the_reference(folder: Path, step: int) -> None:
    assert difference(folder, step) < TOLERANCE


@pytest.mark.parametrize("step", [32, 5, 1], ids=["whole", "chunks of 5", "token by token"])
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_ways_of_a_gpu_equal_the_reference(folder: Path, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLX's rotation and joined projections, which a CPU can run too but does not choose."""
    monkeypatch.setattr(loading, "on_gpu", lambda: True)
    # compiling for a CPU needs a C++ compiler
    monkeypatch.setattr(loading, "gated", lambda activation, compiled, shift: gated(activation, False, shift))
    assert difference(folder, step) < TOLERANCE


@pytest.mark.parametrize(("folder", "spelling"), SPELLINGS, ids=lambda part: getattr(part, "name", part))
def test_every_spelling_of_a_config_means_the_same_model(folder: Path, spelling: str, tmp_path: Path) -> None:
    config = json.loads((folder / spelling).read_text())
    assert difference(with_config(folder, config, tmp_path), step=32) < TOLERANCE


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_asking_for_the_last_rows_only_gives_the_same_logits(folder: Path) -> None:
    tokens, wanted = expected(folder)
    decoder = loading.load_decoder(folder, dtype="float32")
    cache = decoder.new_cache()
    assert decoder.extend(mx.array(tokens[:20])[None], cache, logits=0) is None
    last = decoder.extend(mx.array(tokens[20:])[None], cache, logits=3)
    assert last is not None
    assert np.abs(np.array(last[0]) - wanted[-3:]).max() < TOLERANCE


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("llama", {"rope_theta": 11000.0}),
        ("llama-linear", {"rope_scaling.factor": 4.5}),
        ("llama-llama3", {"rope_scaling.high_freq_factor": 3.5}),
        ("llama-llama3", {"rope_scaling.low_freq_factor": 1.2}),
        ("llama-llama3", {"rope_scaling.original_max_position_embeddings": 48}),
        ("llama-yarn", {"rope_scaling.beta_fast": 6.0}),
        ("llama-yarn", {"rope_scaling.beta_slow": 1.0}),
        ("llama-yarn", {"rope_scaling.attention_factor": 1.2}),
        ("llama-yarn", {"rope_scaling.truncate": False}),
        ("qwen3-yarn", {"rope_scaling.attention_factor": 1.0}),
        ("mistral", {"sliding_window": 9}),
        ("gemma3", {"sliding_window": 7}),
        ("gemma3", {"sliding_window_pattern": 2}),
        ("gemma3", {"query_pre_attn_scalar": 16}),
        ("gemma3", {"hidden_activation": "gelu"}),
        ("gemma3-scaled", {"rope_scaling.factor": 7.0}),
        ("gemma3-scaled", {"rope_local_base_freq": 310.0}),
        ("openelm", {"rope_freq_constant": 9000}),
        ("afm", {"rope_theta": 400000.0}),
    ],
    ids=str,
)
def test_the_comparison_notices_a_changed_option(name: str, change: dict[str, Any], tmp_path: Path) -> None:
    config = json.loads((GOLDEN / name / "config.json").read_text())
    for key, value in change.items():
        group, _, leaf = key.rpartition(".")
        (config[group] if group else config)[leaf] = value
    assert difference(with_config(GOLDEN / name, config, tmp_path), step=32) > 10 * TOLERANCE


def test_goldens_cover_every_family() -> None:
    covered = {json.loads((folder / "config.json").read_text())["model_type"] for folder in FOLDERS}
    assert covered == set(FAMILIES)


def test_a_converted_tamm_state_dict_equals_tamm(tmp_path: Path) -> None:
    source, folder = GOLDEN / "afm", tmp_path / "afm"
    convert(source / "tamm.safetensors", folder)
    converted, golden = mx.load(str(folder / "model.safetensors")), mx.load(str(source / "model.safetensors"))
    assert isinstance(converted, dict) and isinstance(golden, dict)
    assert converted.keys() == golden.keys()
    assert all(np.array_equal(converted[name], golden[name]) for name in golden)
    shutil.copy(source / "expected.safetensors", folder)
    assert difference(folder, step=32) < TOLERANCE
