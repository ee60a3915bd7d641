"""`russet convert --to coreai`: plan, write, read back and run, and only then show the bundle."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import russet
from russet.converters.coreai.plan import SYSTEM, Plan, make_plan
from russet.converters.exporting import ExportOptions, ExportReport
from russet.converters.model_tensors import ModelTensors
from russet.converters.writer import staged_folder
from russet.engine.errors import InvalidOptionError, StorageError, WeightsError
from russet.engine.storage import folder_bytes, writing
from russet.models.runtimes import coreai_bundle as names
from russet.models.runtimes.coreai_runner import of_the_system

if TYPE_CHECKING:
    from russet.engine.progress import Progress

RUN_PARAMETERS = {"float32": 500_000_000, "float16": 20_000_000}
"""Models above it are not run after writing: Apple's runtime on a CPU takes 10 s a token for 100 M parameters in
float16."""


def export(model: ModelTensors, dst: Path, options: ExportOptions, dry_run: bool, progress: Progress) -> ExportReport:
    """Write the bundle `dst`; what was written is loaded by Apple's runtime, and run, before it appears."""
    if dst.suffix == names.SUFFIX:
        raise InvalidOptionError(
            f"{dst.name} would be a model without its tokenizer; give a folder for both, without {names.SUFFIX}."
        )
    plan = make_plan(model, options)
    notes = list(plan.notes)
    nbytes = plan.nbytes + sum(_size(content) for content in model.files().values())
    runs = model.parameters <= RUN_PARAMETERS[plan.dtype] or of_the_system()
    if not runs:
        notes.append("the model was loaded, but not run: Apple's runtime on a CPU is too slow for its size")
    if options.layout == "swift" and plan.dtype == "float32":
        notes.append("Apple's Swift runner takes float16 logits only; float32 weights are for checking here")
    if not dry_run:
        with staged_folder(dst, nbytes) as folder:
            _write(model, plan, options, folder, dst.name, progress)
            _check(folder, model.config.vocab_size, runs)
            nbytes = folder_bytes(folder)
    return ExportReport(
        source=model.folder,
        dst=dst,
        target="coreai",
        family=model.config.family,
        weights=plan.weights,
        layout=options.layout,
        context=plan.context,
        chunk=plan.chunk,
        system=SYSTEM,
        parameters=model.parameters,
        bytes_out=nbytes,
        packages=(dst.name + names.SUFFIX,),
        dry_run=dry_run,
        notes=tuple(notes),
        lines=_lines(plan, model.names),
    )


def _write(
    model: ModelTensors, plan: Plan, options: ExportOptions, folder: Path, name: str, progress: Progress
) -> None:
    """Write description, tokenizer and model into `folder`."""
    tokenizer = model.repository or name
    user = {
        "russet.version": russet.__version__,
        names.FAMILY: model.config.family,
        names.WEIGHTS: plan.weights,
        names.CHUNK: str(plan.chunk),
    }
    compression = None if plan.weights in ("float16", "float32") else plan.weights
    said = names.metadata(name, tokenizer, model.config.vocab_size, plan.context, compression, user)
    with writing(folder):
        (folder / names.TOKENIZER).mkdir()
        for file, content in model.files().items():
            data = content if isinstance(content, bytes) else content.read_bytes()
            (folder / names.TOKENIZER / file).write_bytes(data)
        (folder / names.METADATA).write_text(json.dumps(said, indent=2), encoding="utf-8")
    progress.start("Converting", sum(layout.nbytes for layout in plan.layouts.values()))
    try:
        _write_model(model, plan, options, folder / (name + names.SUFFIX), progress)
    finally:
        progress.finish()


def _write_model(model: ModelTensors, plan: Plan, options: ExportOptions, path: Path, progress: Progress) -> None:
    from coreai.authoring import AIProgram, Module

    from russet.converters.coreai.decoder import Emitter
    from russet.converters.coreai.tensors import Tensors

    module = Module.create()
    with module:
        emitter = Emitter(module, Tensors(model, plan, progress.advance))
        emitter.function(names.MAIN, last_only=False)
        if options.layout == "engine":
            emitter.function(names.PREFILL, last_only=True)
    try:
        with writing(path):
            AIProgram(module).save_asset(path)
    except RuntimeError as error:
        raise StorageError(
            f"{path.name} could not be written ({error.__cause__ or error}): free some space, or choose another place."
        ) from error


def _check(folder: Path, vocab_size: int, runs: bool) -> None:
    """Two tokens in one call and one by one: WeightsError unless all logits are finite and both ways agree."""
    from russet.models.runtimes.coreai import CoreAIDecoder

    decoder = CoreAIDecoder(next(folder.glob(f"*{names.SUFFIX}")), None)
    try:
        if not runs:
            return
        tokens = np.array([0, min(1, vocab_size - 1)], np.int32)
        together = decoder.run(tokens, 0, decoder.make_state().state).astype(np.float32)
        state = decoder.make_state().state
        singly = [decoder.run(tokens[i : i + 1], i, state).astype(np.float32) for i in range(2)]
    finally:
        decoder.close()
    if not all(np.isfinite(logits).all() for logits in (together, *singly)):
        raise WeightsError(
            "The package answers with numbers that are not finite: the model's activations do not fit in float16; "
            "give --weights float32."
        )
    if np.abs(together - singly[1]).max() > 0.05 * max(1.0, float(np.abs(singly[1]).max())):
        raise WeightsError("The package's answers to one call and to two disagree; this is a fault in Russet.")


def _lines(plan: Plan, stock: dict[str, str]) -> tuple[tuple[str, str, int, int], ...]:
    """(stock name, kind, tensors, bytes) for the tensors of the same place in every layer."""
    found: dict[tuple[str, str], list[int]] = {}
    for role, layout in plan.layouts.items():
        name = re.sub(r"\.\d+\.", ".*.", stock.get(role, role))
        entry = found.setdefault((name, layout.kind(plan.dtype)), [0, 0])
        entry[0] += 1
        entry[1] += layout.nbytes
    return tuple((name, kind, count, nbytes) for (name, kind), (count, nbytes) in found.items())


def _size(content: bytes | Path) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size
