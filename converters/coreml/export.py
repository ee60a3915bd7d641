"""`russet convert --to coreml`: plan, write, read back and run, and only then show the package."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import russet
from russet.converters.coreml.plan import MAX_WEIGHT_BYTES, Plan, file_bytes, make_plan
from russet.converters.coreml.verify import MAX_PARAMETERS, check_package
from russet.converters.exporting import ExportOptions, ExportReport
from russet.converters.model_tensors import ModelTensors
from russet.converters.writer import staged_folder
from russet.engine.errors import InvalidOptionError
from russet.engine.storage import folder_bytes, writing
from russet.models.runtimes import coreml_package as names

if TYPE_CHECKING:
    from russet.engine.progress import Progress


def export(
    model: ModelTensors,
    dst: Path,
    options: ExportOptions,
    dry_run: bool,
    progress: Progress,
    max_bytes: int = MAX_WEIGHT_BYTES,
) -> ExportReport:
    """Write the package `dst`, or the folder `dst` of packages; what was written is run before it appears."""
    plan = make_plan(model, options, max_bytes)
    packages = _packages(dst, len(plan.parts))
    notes = [*plan.notes, *_client_notes(model, options), *_check_notes(model)]
    nbytes = file_bytes(plan) + sum(_size(content) for content in model.files().values())
    if not dry_run:
        with staged_folder(dst, nbytes) as folder:
            _write(model, plan, options, folder, dst.suffix == names.SUFFIX, progress)
            nbytes = folder_bytes(folder)
    return ExportReport(
        source=model.folder,
        dst=dst,
        target="coreml",
        family=model.config.family,
        weights=plan.weights,
        layout=options.layout,
        context=plan.context,
        chunk=plan.chunk,
        system=plan.system,
        parameters=model.parameters,
        bytes_out=nbytes,
        packages=tuple(packages),
        dry_run=dry_run,
        notes=tuple(notes),
        lines=plan.lines(model.names),
    )


def _packages(dst: Path, count: int) -> list[str]:
    if dst.suffix == names.SUFFIX:
        if count > 1:
            raise InvalidOptionError(
                f"The weights need {count} packages, and {dst.name} is one; give a folder without {names.SUFFIX}, or "
                "--weights that take less."
            )
        return [dst.name]
    return names.package_names(count)


def _write(
    model: ModelTensors, plan: Plan, options: ExportOptions, folder: Path, single: bool, progress: Progress
) -> None:
    """Write packages and description into `folder`, run them, and make `folder` itself the package if `single`."""
    from russet.converters.coreml.package import add_description, write_files, write_package

    metadata = {
        "russet.version": russet.__version__,
        names.FAMILY: model.config.family,
        names.LAYOUT: options.layout,
        names.CONTEXT: str(plan.context),
        names.CHUNK: str(plan.chunk),
        names.WEIGHTS: plan.weights,
        **({names.SWIFT_NAME: model.repository} if model.repository else {}),
    }
    packages = names.package_names(len(plan.parts))
    progress.start("Converting", sum(part.nbytes for part in plan.parts))
    try:
        for part, package in zip(plan.parts, packages, strict=True):
            write_package(model, plan, part, options.layout, metadata, folder / package, progress)
    finally:
        progress.finish()
    with writing(folder):
        write_files(folder, model.files())
    check_package(folder, model, plan)
    if single:
        add_description(folder / packages[0], model.files(), folder / names.DESCRIPTION)
        _lift(folder, packages[0])


def _lift(folder: Path, package: str) -> None:
    """Make the folder itself the package that lies in it."""
    with writing(folder):
        for path in list(folder.iterdir()):
            if path.name != package:
                path.unlink()
        for path in list((folder / package).iterdir()):
            path.rename(folder / path.name)
        (folder / package).rmdir()


def _client_notes(model: ModelTensors, options: ExportOptions) -> list[str]:
    if options.layout != "swift" or model.repository:
        return []
    return [
        "Hugging Face's Swift client finds the tokenizer by the name of a hub repository, which a folder does not "
        "tell; give the repository as SRC to have it in the package"
    ]


def _check_notes(model: ModelTensors) -> list[str]:
    if model.parameters <= MAX_PARAMETERS:
        return []
    return [f"the package is not run here, for the model has more than {MAX_PARAMETERS / 1e6:.0f} M parameters"]


def _size(content: bytes | Path) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size
