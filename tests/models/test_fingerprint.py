from __future__ import annotations

import json
import shutil
from pathlib import Path

import mlx.core as mx
import pytest

from russet.models.fingerprint import fingerprint


@pytest.fixture
def copy(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "copy"))


def test_a_copy_is_the_same_model(tiny_folder: Path, copy: Path) -> None:
    (copy / "README.md").write_text("x")
    assert fingerprint(copy) == fingerprint(tiny_folder)


def test_a_change_to_any_single_tensor_is_another_model(tiny_folder: Path, copy: Path) -> None:
    weights = mx.load(str(copy / "model.safetensors"))
    assert isinstance(weights, dict)
    known = {fingerprint(tiny_folder)}
    for name in list(weights)[:4]:
        mx.save_safetensors(str(copy / "model.safetensors"), weights | {name: weights[name] * 1.01})
        known.add(fingerprint(copy))
    assert len(known) == 5


def test_a_change_to_the_configuration_is_another_model(tiny_folder: Path, copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"rope_theta": 5000.0}))
    assert fingerprint(copy) != fingerprint(tiny_folder)
