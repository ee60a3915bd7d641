"""What `russet convert --to coreai` and loading its packages refuse, in one sentence, and what is left: nothing."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from russet.converters import exporting
from russet.converters.exporting import ExportOptions, export
from russet.engine import storage
from russet.engine.cli import main
from russet.engine.errors import (
    CheckpointError,
    InvalidOptionError,
    MissingDependencyError,
    ModelNotFoundError,
    OutputExistsError,
    StorageError,
    UnsupportedModelError,
)
from russet.models import runtimes
from russet.models.runtimes.coreai_bundle import description_of, read_bundle

from .conftest import GOLDEN

LLAMA = GOLDEN / "llama"


def refusal(error: type[Exception], dst: Path, source: Path = LLAMA, **options: Any) -> str:
    before = sorted(dst.parent.iterdir())
    with pytest.raises(error) as caught:
        export(source, dst, "coreai", options=ExportOptions(**options))
    assert sorted(dst.parent.iterdir()) == before
    return str(caught.value)


@pytest.fixture
def dst(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "package"


def test_options_that_core_ai_does_not_have(dst: Path) -> None:
    assert "palette4 is for --to coreml" in refusal(InvalidOptionError, dst, weights="palette4")
    assert "leave it out" in refusal(InvalidOptionError, dst, system="ios18")
    assert "context is 65, and llama was made for 64" in refusal(InvalidOptionError, dst, context=65)
    assert "no packed weights to keep" in refusal(InvalidOptionError, dst, weights="stored")
    said = refusal(InvalidOptionError, dst.with_name("x.aimodel"))
    assert said == "x.aimodel would be a model without its tokenizer; give a folder for both, without .aimodel."


def test_features_that_packages_do_not_have(dst: Path, variant) -> None:
    layers = json.loads((LLAMA / "config.json").read_text())["num_hidden_layers"]
    cut = variant("llama", ffn_thresholds=[0.5] * layers)
    assert "leaves neurons out below thresholds" in refusal(UnsupportedModelError, dst, cut)


def test_an_existing_destination(dst: Path) -> None:
    dst.mkdir()
    assert "exists already" in refusal(OutputExistsError, dst)


def test_a_full_disk(dst: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from coreai.authoring import AIProgram

    def full(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("failed to persist") from OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(AIProgram, "save_asset", full)
        assert "package.aimodel could not be written ([Errno 28] No space" in refusal(StorageError, dst)
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda path: usage(1000))
    assert "free some space" in refusal(StorageError, dst)


def test_a_missing_extra_is_named(dst: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(exporting.importlib.util, "find_spec", lambda name: None)
        said = refusal(MissingDependencyError, dst)
    assert said == "Converting to coreai needs coreai; install russet[coreai]."
    package = dst.with_suffix(".aimodel")
    monkeypatch.setattr(runtimes.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"needs coreai; install russet\[coreai\]"):
        runtimes.package_kind(package)


def test_a_dry_run_tells_the_size_and_writes_nothing(dst: Path) -> None:
    said = export(LLAMA, dst, "coreai", options=ExportOptions(weights="float32"), dry_run=True)
    assert list(dst.parent.iterdir()) == []
    written = export(LLAMA, dst, "coreai", options=ExportOptions(weights="float32"))
    assert said.lines == written.lines and said.bits_per_weight == 32
    assert abs(said.bytes_out - written.bytes_out) < 60_000
    result = CliRunner().invoke(main, ["convert", str(LLAMA), str(dst) + "2", "--to", "coreai", "--dry-run"])
    assert result.exit_code == 0 and "Would write" in result.output and "llama for coreai" in result.output


def test_packages_that_cannot_be_opened(dst: Path) -> None:
    export(LLAMA, dst, "coreai", options=ExportOptions(weights="float32"))
    assert read_bundle(dst / "package.aimodel").model == dst / "package.aimodel"
    metadata = json.loads((dst / "metadata.json").read_text())
    (dst / "metadata.json").write_text(json.dumps(metadata | {"user_data": {}}))
    with pytest.raises(CheckpointError, match="does not describe a package of `russet convert --to coreai`"):
        read_bundle(dst)
    (dst / "metadata.json").write_text(json.dumps(metadata))
    from russet.models.runtimes.coreai import load

    (dst / "package.aimodel" / "main.mlirb").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="is damaged: its hash is another"):
        load(dst, None)
    shutil.rmtree(dst / "package.aimodel")
    with pytest.raises(CheckpointError, match=r"lacks package\.aimodel"):
        read_bundle(dst)
    shutil.rmtree(dst / "tokenizer")
    with pytest.raises(ModelNotFoundError, match="so it was not made by `russet convert --to coreai`"):
        description_of(dst)
