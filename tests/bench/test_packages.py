"""Packages beside the model that they were made from, in one benchmark."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

pytest.importorskip("coremltools")

from russet.converters.exporting import ExportOptions, export
from russet.engine.cli import main

SHORT = ("--prompt-lengths", "40", "--generate", "6", "--repeat", "2", "--no-as-installed")


@pytest.fixture
def package(folder: Path, tmp_path: Path) -> Path:
    export(folder, tmp_path / "x.mlpackage", "coreml", options=ExportOptions(context=64, chunk=16))
    return tmp_path / "x.mlpackage"


def test_a_package_beside_the_model(folder: Path, package: Path) -> None:
    arguments = ["bench", "decode", "-m", str(folder), "--package", str(package), *SHORT, "--json"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert list(report["contenders"]) == ["russet", "x.mlpackage"]
    assert "through Russet's MIL interpreter" in report["contenders"]["x.mlpackage"]
    (found,) = report["results"]
    assert len(found["runs"]["x.mlpackage"]) == 2 and found["ratios"]["x.mlpackage"]["same_tokens"]
    assert list(report["steps"]) == ["russet"]
    assert found["summary"]["x.mlpackage"]["peak_memory_bytes"]["median"] > package.stat().st_size


def test_a_package_alone(package: Path) -> None:
    result = CliRunner().invoke(main, ["bench", "decode", "-m", str(package), *SHORT, "--json"])
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["model"]["sha256"] and report["steps"] == {}


def test_what_does_not_fit_is_refused(folder: Path, package: Path, tmp_path: Path) -> None:
    def said(*arguments: str) -> str:
        result = CliRunner().invoke(main, ["bench", "decode", "-m", str(folder), *arguments, "--no-as-installed"])
        assert result.exit_code == 1
        return result.stderr

    assert "is no package" in said("--package", str(tmp_path / "absent.mlpackage"))
    assert "ends in 'gpu'; it must be all, cpu" in said("--package", f"{package}@gpu")
    assert "holds 64 positions and 100 are needed" in said(
        "--package", str(package), "--prompt-lengths", "90", "--generate", "10"
    )
