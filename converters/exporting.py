"""Export a model to a runtime that is not MLX: one contract for every target of `russet convert --to`.

A target is one module with one function, registered in `TARGETS`:

    export(model, dst, options, dry_run, progress) -> ExportReport

It writes through `converters.writer.staged_folder`, so that `dst` is there whole or not at all, and what it wrote is
opened by the module of the same name in models/runtimes/.
"""

from __future__ import annotations

import importlib.util
import logging
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from russet.converters.model_tensors import ModelTensors
from russet.converters.writer import refuse_existing
from russet.engine.errors import InvalidOptionError, MissingDependencyError
from russet.engine.library_imports import import_library
from russet.engine.paths import downloads_dir
from russet.engine.progress import SilentProgress
from russet.engine.storage import make_folder
from russet.models.runtimes import package_suffix

if TYPE_CHECKING:
    from russet.engine.progress import Progress

_logger = logging.getLogger("russet")

# Name -> module, the libraries that it needs, and the extra that installs them.
TARGETS = {
    "coreml": ("russet.converters.coreml.export", ("coremltools",), "coreml"),
    "coreai": ("russet.converters.coreai.export", ("coreai",), "coreai"),
}

WEIGHTS = ("float16", "float32", "int8", "int4", "palette4", "palette2", "stored")
LAYOUTS = ("engine", "swift")
CONTEXT = 2048
CHUNK = 64

Layout = Literal["engine", "swift"]


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """What the user asked for; a target refuses by name what it does not implement.

    `weights` is how matrices are stored; "stored" keeps those that are packed already, and None is that for a model
    with balanced 2-bit weights and float16 for any other. `context` is the number of positions that the state holds,
    `chunk` the tokens that the prefill function takes, `system` the oldest system that the package is for.
    """

    weights: str | None = None
    layout: Layout = "engine"
    context: int | None = None
    chunk: int | None = None
    system: str | None = None

    def __post_init__(self) -> None:
        for name, value, known in (
            ("weights", self.weights, WEIGHTS),
            ("layout", self.layout, LAYOUTS),
        ):
            if value is not None and value not in known:
                raise InvalidOptionError(f"{name} is {value!r}; it must be one of {', '.join(known)}.")
        if self.system is not None and not re.fullmatch(r"(ios|macos)\d{1,2}", self.system):
            raise InvalidOptionError(f"system is {self.system!r}; it must be a system and its version, as in ios18.")
        for name, value in (("context", self.context), ("chunk", self.chunk)):
            if value is not None and value < 1:
                raise InvalidOptionError(f"{name} is {value}; it must be at least 1.")


@dataclass(frozen=True)
class ExportReport:
    """What an export did, or with `dry_run` would do. Sizes are in bytes; `packages` are the names of what is in dst.

    `lines` say how much each kind of tensor takes: (name, stored as, tensors, bytes).
    """

    source: Path
    dst: Path
    target: str
    family: str
    weights: str
    layout: str
    context: int
    chunk: int
    system: str
    parameters: int
    bytes_out: int
    packages: tuple[str, ...]
    dry_run: bool
    notes: tuple[str, ...] = ()
    lines: tuple[tuple[str, str, int, int], ...] = ()

    @property
    def bits_per_weight(self) -> float:
        return 8 * sum(nbytes for *_, nbytes in self.lines) / max(1, self.parameters)


class Exporter(Protocol):
    """What a target's module offers."""

    def export(
        self, model: ModelTensors, dst: Path, options: ExportOptions, dry_run: bool, progress: Progress
    ) -> ExportReport: ...


def repository_of(src: str) -> str | None:
    """The hub repository that a source names, or that a catalog name stands for; None for anything else."""
    from russet.models.catalog import CATALOG, HubSource

    if src in CATALOG:
        return next((place.repository for place in CATALOG[src].sources if isinstance(place, HubSource)), None)
    return src if re.fullmatch(r"[\w.-]+/[\w.-]+", src) and not Path(src).exists() else None


def export(
    src: str | Path,
    dst: str | Path,
    to: str,
    *,
    options: ExportOptions | None = None,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> ExportReport:
    """Export the model `src`, a checkpoint, a hub repository or a catalog name, to the new package `dst`.

    Nothing is left at `dst` when it fails. Raises InvalidOptionError, MissingDependencyError, UnsupportedModelError,
    OutputExistsError, StorageError, WeightsError, and what fetching a model raises.
    """
    if to not in TARGETS:
        raise InvalidOptionError(f"There is no target {to!r}; there are {', '.join(TARGETS)}.")
    module, libraries, extra = TARGETS[to]
    for library in libraries:
        if importlib.util.find_spec(library) is None:
            raise MissingDependencyError(f"Converting to {to} needs {library}; install russet[{extra}].")
    if not dry_run:
        refuse_existing(Path(dst))
    exporter: Exporter = import_library(module)  # type: ignore[assignment]
    if not dry_run:
        for library in libraries:
            import_library(library)
    with _model_folder(str(src), progress) as folder:
        model = ModelTensors(folder, repository_of(str(src)))
        return exporter.export(model, Path(dst), options or ExportOptions(), dry_run, progress or SilentProgress())


@contextmanager
def _model_folder(src: str, progress: Progress | None) -> Iterator[Path]:
    """The model folder that a source names; PyTorch checkpoints become one that is deleted afterwards."""
    from russet.converters.convert import convert
    from russet.models.download import resolve

    path = Path(src).expanduser()
    readable = path.suffix.lower() == ".gguf" or (path.is_dir() and any(path.glob("*.safetensors")))
    if not path.exists() or readable or package_suffix(path):
        yield resolve(src, progress=progress)
        return
    scratch = make_folder(downloads_dir()) / f"export-{secrets.token_hex(4)}"
    try:
        for note in convert(path, scratch, progress=progress).notes:
            _logger.warning("%s", note)
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
