"""Where a number was measured: machine, versions, model. Without it the number says nothing."""

from __future__ import annotations

import hashlib
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import russet
from russet.engine.machine import command_output, cpu_name, gpu_cores, model_identifier, power, pressure
from russet.models.runtimes import package_suffix

MACHINE = ("device", "cpu", "cores", "gpu", "gpu_cores", "memory_bytes", "machine_model")
"""The values in which one machine differs from another."""


def environment() -> dict[str, Any]:
    """Machine and versions; a value that cannot be read is None, never a guess."""
    import mlx.core as mx

    from russet.engine.blas import use_fast_blas
    from russet.engine.device import memory_bytes, on_gpu

    gpu = on_gpu()
    power_mode, power_source = power()
    return {
        "device": "gpu" if gpu else "cpu",
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpu": str(mx.device_info().get("device_name")) if gpu else None,
        "gpu_cores": gpu_cores() if gpu else None,
        "gpu_memory_bytes": memory_bytes() if gpu else None,
        "machine_model": model_identifier(),
        "power_mode": power_mode,
        "power_source": power_source,
        "pressure": pressure().to_dict(),
        "blas": None if gpu else use_fast_blas().name,
        "blas_threads": os.environ.get("OPENBLAS_NUM_THREADS"),
        "os": platform.platform(),
        "python": platform.python_version(),
        "russet": russet.__version__,
        "mlx": getattr(mx, "__version__", None),
        "mlx-lm": version("mlx-lm"),
        "git": git_revision(Path(russet.__file__).parents[1]),
        "load_average": os.getloadavg()[0],
    }


def version(package: str) -> str | None:
    """The installed version of a package, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def git_revision(root: Path) -> str | None:
    """The commit of a checkout, with "-modified" where tracked files differ from it; None if `root` is none."""
    if not (root / ".git").exists():
        return None
    revision = command_output("git", "-C", str(root), "rev-parse", "--short=12", "HEAD")
    if revision is None:
        return None
    return revision + ("-modified" if command_output("git", "-C", str(root), "status", "--porcelain", "-uno") else "")


def model_hash(folder: Path) -> str:
    """SHA-256 over the names and SHA-256s of config.json and the weight files, or of a package's files, by name."""
    packaged = package_suffix(folder) is not None
    weights = [folder / "config.json", *folder.glob("*.safetensors")]
    files = [path for path in folder.rglob("*") if path.is_file()] if packaged else weights
    total = hashlib.sha256()
    for path in sorted(files):
        name = path.relative_to(folder).as_posix() if packaged else path.name
        with path.open("rb") as file:
            total.update(f"{name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()
