"""What `russet convert --to coreml` refuses, in one sentence, and what it leaves on the disk: nothing."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from click.testing import CliRunner

from russet.converters import exporting
from russet.converters.exporting import ExportOptions, export
from russet.engine import storage
from russet.engine.cli import main
from russet.engine.errors import (
    InvalidOptionError,
    MissingDependencyError,
    ModelNotFoundError,
    OutputExistsError,
    StorageError,
    UnsupportedModelError,
)


def refusal(error: type[Exception], source: Path, dst: Path, **options: Any) -> str:
    before = sorted(dst.parent.iterdir())
    with pytest.raises(error) as caught:
        export(source, dst, "coreml", options=ExportOptions(**options))
    assert sorted(dst.parent.iterdir()) == before
    return str(caught.value)


@pytest.fixture
def dst(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "x.mlpackage"


def test_a_context_that_the_model_or_the_state_does_not_have(half: Callable[..., Path], dst: Path) -> None:
    source = half("llama-tied", max_position_embeddings=64)
    assert "context is 65, and the model has 64 positions" in refusal(InvalidOptionError, source, dst, context=65)
    assert "a prompt and its reply need at least 2" in refusal(InvalidOptionError, source, dst, context=1)
    assert "chunk is 41, more than the context of 40" in refusal(InvalidOptionError, source, dst, context=40, chunk=41)


def test_a_system_that_has_no_states(half: Callable[..., Path], dst: Path) -> None:
    for system in ("ios17", "macos14"):
        said = refusal(InvalidOptionError, half("llama-tied"), dst, system=system)
        assert (
            said
            == f"A package with a state needs iOS 18 or macOS 15; {system!r} is too old: give ios18 or leave it out."
        )
    with pytest.raises(InvalidOptionError, match="must be a system and its version, as in ios18"):
        ExportOptions(system="tvos")


def test_features_that_packages_do_not_have(half: Callable[..., Path], dst: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cut"
    shutil.copytree(half("llama-tied"), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"ffn_thresholds": [0.5] * config["num_hidden_layers"]}))
    assert "leaves neurons out below thresholds" in refusal(UnsupportedModelError, folder, dst)
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "mamba"}))
    assert "mamba" in refusal(UnsupportedModelError, folder, dst)


def test_a_full_disk(half: Callable[..., Path], dst: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is written, and where space runs out on the way."""
    source = half("llama-tied")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda path: usage(0, 0, 1000))
    assert "are needed: free some space" in refusal(StorageError, source, dst)
    monkeypatch.undo()

    def full(*arguments: Any, **settings: Any) -> Any:
        raise RuntimeError("[MIL StorageWriter]: Unable to write bytes")

    from russet.converters.coreml import package

    free = shutil.disk_usage(dst.parent).free
    answers = iter([usage(0, 0, free)] * 2)
    monkeypatch.setattr(package, "mil_convert_to_proto", full)
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda path: next(answers, usage(0, 0, 10)))
    assert "is full: free some space and try again" in refusal(StorageError, source, dst)


def test_an_existing_destination(half: Callable[..., Path], dst: Path) -> None:
    dst.mkdir()
    (dst / "mine").write_text("kept")
    assert "exists already" in refusal(OutputExistsError, half("llama-tied"), dst)
    assert (dst / "mine").read_text() == "kept"


def test_a_source_that_is_not_there(dst: Path, tmp_path: Path) -> None:
    assert "There is no model" in refusal(ModelNotFoundError, tmp_path / "absent", dst)


def test_without_the_extra(half: Callable[..., Path], dst: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting.importlib.util, "find_spec", lambda name: None)
    said = refusal(MissingDependencyError, half("llama-tied"), dst)
    assert said == "Converting to coreml needs coremltools; install russet[coreml]."


def test_the_command_says_what_it_did_and_what_it_would_do(half: Callable[..., Path], dst: Path) -> None:
    arguments = ["convert", str(half("llama-tied")), str(dst), "--to", "coreml", "--context", "32", "--weights", "int8"]
    planned = CliRunner().invoke(main, [*arguments, "--dry-run", "--json"])
    assert planned.exit_code == 0 and not dst.exists()
    would = json.loads(planned.stdout)
    table = CliRunner().invoke(main, [*arguments, "--dry-run"]).stdout.splitlines()
    assert table[0].split()[:2] == ["model.embed_tokens", "int8"] and table[-1].startswith(f"Would write {dst}: llama")
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.stderr
    assert done.stdout.startswith(f"Wrote {dst}: llama for coreml, engine layout, context 32, int8 weights, ")
    size = sum(file.stat().st_size for file in dst.rglob("*") if file.is_file())
    assert would["packages"] == ["x.mlpackage"] and abs(would["bytes_out"] / size - 1) < 0.2
    again = CliRunner().invoke(main, arguments)
    assert again.exit_code == 1 and "exists already" in again.stderr


def test_options_of_mlx_folders_are_refused(half: Callable[..., Path], dst: Path) -> None:
    arguments = ["convert", str(half("llama-tied")), str(dst), "--to", "coreml", "--bits", "4"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2 and "--bits does not apply to --to coreml: packages take --weights" in result.stderr


def test_pytorch_checkpoints_are_converted_on_the_way(
    half: Callable[..., Path], dst: Path, tmp_path: Path, torch_files: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through a model folder in the cache, of which nothing stays."""
    monkeypatch.setenv("RUSSET_CACHE", str(tmp_path / "cache"))
    source = half("llama-tied")
    folder = tmp_path / "pickled"
    folder.mkdir()
    shutil.copy(source / "config.json", folder)
    tensors = mx.load(str(source / "model.safetensors"))
    assert isinstance(tensors, dict)
    state = {name: np.array(array) for name, array in tensors.items()}
    (folder / "pytorch_model.bin").write_bytes(torch_files.save(state))
    export(folder, dst, "coreml", options=ExportOptions(context=32))
    export(source, tmp_path / "other.mlpackage", "coreml", options=ExportOptions(context=32))
    weights = "Data/com.apple.CoreML/weights/weight.bin"
    assert (dst / weights).read_bytes() == (tmp_path / "other.mlpackage" / weights).read_bytes()
    assert list((tmp_path / "cache" / "downloads").iterdir()) == []
