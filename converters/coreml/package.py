"""Write one part as a .mlpackage: its functions as a program, weights, metadata, and the model's description."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Mapping
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import coremltools as ct
from coremltools.converters.mil.converter import ConverterRegistry, _reset_conversion_state, mil_convert_to_proto
from coremltools.converters.mil.mil import Program
from coremltools.libmodelpackage import ModelPackage  # type: ignore[import-not-found]
from coremltools.models.utils import _create_mlpackage  # type: ignore[attr-defined]

from russet.converters.coreml.bank import Bank
from russet.converters.coreml.graph import Graph
from russet.converters.coreml.plan import Part, Plan
from russet.converters.model_tensors import ModelTensors
from russet.engine.progress import Progress
from russet.engine.storage import require_space, writing
from russet.models.runtimes.coreml_package import DECODE, DESCRIPTION, MAIN, PREFILL

_SYSTEMS = {"ios18": ct.target.iOS18, "ios26": getattr(ct.target, "iOS26", ct.target.iOS18)}


def write_package(
    model: ModelTensors,
    plan: Plan,
    part: Part,
    layout: str,
    metadata: Mapping[str, str],
    path: Path,
    progress: Progress,
) -> None:
    """Write the part's package to `path`, which ends in .mlpackage; raises StorageError when the disk is full."""
    program = _program(Graph(plan, part, Bank(model, plan, progress)), plan, layout)
    weights = path.with_suffix(".weights")
    with writing(path):
        # The weight file is written once and copied into the package.
        require_space(path.parent, 2 * part.nbytes)
        weights.mkdir()
        try:
            spec = _spec(program, plan, weights)
            spec.description.metadata.userDefined.update(metadata)
            _create_mlpackage(spec, str(weights), str(path))
            for file in (path / "Data").rglob("*.mlmodel"):
                # It comes from a temporary file that nobody else may read.
                shutil.copymode(path / "Manifest.json", file)
        except RuntimeError as error:
            # The library that writes weights tells of a full disk in its own words.
            raise OSError(*_cause(path, part, error)) from error
        finally:
            shutil.rmtree(weights, ignore_errors=True)


def add_description(path: Path, files: Mapping[str, bytes | Path], scratch: Path) -> None:
    """Put config.json and the tokenizer's files into a package, as an item that Core ML does not look at."""
    with writing(path):
        scratch.mkdir()
        try:
            write_files(scratch, files)
            ModelPackage(str(path)).addItem(str(scratch), DESCRIPTION, "russet", "Configuration and tokenizer")
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def write_files(folder: Path, files: Mapping[str, bytes | Path]) -> None:
    for name, content in files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.read_bytes())


def _program(graph: Graph, plan: Plan, layout: str) -> Program:
    program = Program()
    if layout == "swift":
        program.add_function(MAIN, graph.swift_function())
        program.default_function_name = MAIN
        return program
    program.add_function(PREFILL, graph.engine_function(plan.chunk))
    program.add_function(DECODE, graph.engine_function(1))
    program.default_function_name = DECODE
    program.export_as_multifunction = True
    return program


def _spec(program: Program, plan: Plan, weights: Path) -> Any:
    """The protobuf message; the weights go into a file of the folder `weights`."""
    # Passes that rewrite the graph would undo its orders of operations, and cost most of the time.
    pipeline = ct.PassPipeline.EMPTY
    pipeline.append_pass("common::dead_code_elimination")  # pyright: ignore[reportAttributeAccessIssue]
    # Its progress bars count passes, of which there are none worth watching.
    with warnings.catch_warnings(), redirect_stderr(StringIO()):
        warnings.simplefilter("ignore")
        spec, _ = mil_convert_to_proto(
            program,
            "milinternal",
            "mlprogram",
            ConverterRegistry,
            main_pipeline=pipeline,
            specification_version=int(_SYSTEMS[plan.system]),
            weights_dir=str(weights),
        )
    _reset_conversion_state()
    return spec


def _cause(path: Path, part: Part, error: RuntimeError) -> tuple[int, str]:
    import errno

    full = shutil.disk_usage(path.parent).free < part.nbytes
    return (errno.ENOSPC, "the disk is full") if full else (errno.EIO, str(error))
