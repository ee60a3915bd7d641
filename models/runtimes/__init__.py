"""Decoders that another program computes: packages for Apple's runtimes, and mlx-lm's architectures.

A kind of package is one module here with two functions, registered by the suffix of its files:

    files(path)                  the folder that has the package's config.json, tokenizer and chat template
    load(path, compute_units)    the package -> ForeignDecoder; compute_units is None or one of COMPUTE_UNITS
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from russet.engine.errors import MissingDependencyError
from russet.engine.library_imports import import_library

if TYPE_CHECKING:
    from russet.models.runtimes.base import ForeignDecoder

# Suffix -> module, the library that it needs, and the extra that installs it.
PACKAGES = {
    ".mlpackage": ("russet.models.runtimes.coreml", "coremltools", "coreml"),
    ".aimodel": ("russet.models.runtimes.coreai", "coreai", "coreai"),
}

COMPUTE_UNITS = ("all", "cpu", "cpu-gpu", "cpu-ne")
"""What a package may run on: everything, the CPU alone, or the CPU with the GPU or with the Neural Engine."""


class PackageKind(Protocol):
    """What every module in this folder that reads packages offers."""

    def files(self, path: Path) -> Path: ...
    def load(self, path: Path, compute_units: str | None) -> ForeignDecoder: ...


def package_suffix(path: Path) -> str | None:
    """The kind of an exported model: a package, or a folder of packages that are one model; None for anything else."""
    if path.suffix in PACKAGES:
        return path.suffix
    if path.is_dir() and not any(path.glob("*.safetensors")):
        return next((suffix for suffix in PACKAGES if any(path.glob(f"*{suffix}"))), None)
    return None


def package_kind(path: Path) -> PackageKind:
    """The module for an exported model; MissingDependencyError names the extra that is not installed."""
    suffix = package_suffix(path)
    assert suffix is not None
    module, library, extra = PACKAGES[suffix]
    if importlib.util.find_spec(library) is None:
        raise MissingDependencyError(f"{path.name} needs {library}; install russet[{extra}].")
    kind: PackageKind = import_library(module)  # type: ignore[assignment]
    import_library(library)
    return kind
