"""Packages beside the model that they were made from, in one benchmark."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from russet.converters.exporting import ExportOptions, export
from russet.engine.cli import main
from russet.engine.storage import folder_bytes
from russet.models.mil.interpreter import Interpreter

ct = pytest.importorskip("coremltools")

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


def test_whole_answers_of_a_package(package: Path) -> None:
    arguments = [
        "bench",
        "ttft",
        "-m",
        str(package),
        "--prompt-lengths",
        "40",
        "--generate",
        "4",
        "--repeat",
        "1",
        "--json",
    ]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.stderr
    (model,) = json.loads(result.stdout)["models"]
    (contender,) = model["contenders"].values()
    assert "through Russet's MIL interpreter" in contender["setting"]
    assert contender["weights_bytes"] == folder_bytes(package)


def test_the_script_times_every_choice_of_units(folder: Path, package: Path, tmp_path: Path) -> None:
    """On a Mac; here it runs as it is, with the interpreter."""
    script = Path(__file__).parents[2] / "bench" / "time_package.sh"
    fake = tmp_path / "bin"
    fake.mkdir()
    for name, text in (("uname", "echo Darwin"), ("russet", 'echo "$@"')):
        (fake / name).write_text(f"#!/bin/sh\n{text}\n")
        (fake / name).chmod(0o755)
    path = {"PATH": f"{fake}:{os.environ['PATH']}"}
    said = subprocess.run(
        [script, "model", "x", "out.json", "--repeat", "1"], env=os.environ | path, capture_output=True, text=True
    )
    units = " ".join(f"--package x@{unit}" for unit in ("cpu", "cpu-gpu", "cpu-ne", "all"))
    assert said.stdout == f"bench decode -m model --no-as-installed --json out.json {units} --repeat 1\n"
    real = {"RUSSET": str(Path(sys.executable).parent / "russet")}
    subprocess.run([script, folder, package, tmp_path / "out.json", *SHORT[:-1]], env=os.environ | real, check=True)
    assert "x.mlpackage" in json.loads((tmp_path / "out.json").read_text())["contenders"]
    assert subprocess.run([script], capture_output=True).returncode == 2


class Plan:
    """Core ML's compute plan: constants have no device, the rest alternates between two."""

    def __init__(self, path: str) -> None:
        spec = Interpreter(Path(path)).spec.mlProgram
        self.model_structure = SimpleNamespace(program=SimpleNamespace(functions={}))
        for name, function in spec.functions.items():
            block = SimpleNamespace(operations=list(function.block_specializations[function.opset].operations))
            self.model_structure.program.functions[name] = SimpleNamespace(block=block)

    def get_compute_device_usage_for_mlprogram_operation(self, operation: Any) -> Any:
        if operation.type == "const":
            return None
        name = "MLNeuralEngineComputeDevice" if operation.type == "linear" else "MLCPUComputeDevice"
        return SimpleNamespace(preferred_compute_device=type(name, (), {})())

    def get_estimated_cost_for_mlprogram_operation(self, operation: Any) -> Any:
        return SimpleNamespace(weight=1.0) if operation.type == "linear" else None


def test_placement(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = CliRunner().invoke(main, ["bench", "placement", str(package)])
    assert elsewhere.exit_code == 1 and "which is on macOS only" in elsewhere.stderr
    monkeypatch.setattr("sys.platform", "darwin")
    asked: list[Any] = []

    def load(path: str, compute_units: Any) -> Plan:
        asked.append(compute_units)
        return Plan(path)

    monkeypatch.setattr(ct.models.utils, "compile_model", lambda path: path)
    monkeypatch.setattr(ct.models.compute_plan, "MLComputePlan", SimpleNamespace(load_from_path=load))
    result = CliRunner().invoke(main, ["bench", "placement", str(package), "--compute-units", "cpu-ne"])
    assert result.exit_code == 0, result.stderr
    first, second = result.stdout.splitlines()
    # Two layers of seven matrices, and the head.
    assert first.startswith("x.mlpackage, prefill: CPU ") and "Neural Engine 15 operations (100% of the cost)" in first
    assert second.startswith("x.mlpackage, decode: CPU ") and asked == [ct.ComputeUnit.CPU_AND_NE]


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
