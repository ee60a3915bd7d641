"""What Russet runs on, finding by finding: versions, device, BLAS and its speed, cache, models, extras."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from russet.engine.errors import RussetError
from russet.engine.machine import cpu_name, gpu_cores
from russet.engine.paths import cache_root, documents_dir, prefixes_dir
from russet.engine.storage import folder_bytes, readable_bytes
from russet.engine.timing import now

if TYPE_CHECKING:
    from russet.kernels.report import Report

# Distribution, and what it adds.
_CUDA = "mlx-cuda-13"
_EXTRAS = (
    ("mlx-lm", "architectures that Russet has no family for"),
    ("coremltools", "packages for Core ML"),
    ("coreai-core", "packages for Core AI"),
)


@dataclass(frozen=True)
class Finding:
    """One line of the diagnosis; `value` is its JSON form, `problem` a sentence if Russet cannot work like this.

    `table` has a header and rows where one line does not say it all.
    """

    key: str
    text: str
    value: Any
    problem: str = ""
    table: tuple[tuple[str, ...], ...] = ()


def diagnose() -> list[Finding]:
    """Look at everything in turn; a check that fails becomes a finding with a problem, and the others go on."""
    return [_guarded(check) for check in _CHECKS]


def _guarded(check: Callable[[], Finding]) -> Finding:
    key = check.__name__.strip("_")
    try:
        return check()
    except RussetError as error:
        return Finding(key, "broken", None, str(error))
    except Exception as error:  # whatever is broken on this machine is what the user wants to read
        return Finding(key, "broken", None, f"The check of {key} failed ({type(error).__name__}: {error}).")


def _python() -> Finding:
    version = platform.python_version()
    return Finding("python", f"{version} ({sys.executable})", {"version": version, "path": sys.executable})


def _russet() -> Finding:
    version = importlib.metadata.version("russet")
    return Finding("russet", version, version)


def _mlx() -> Finding:
    import mlx.core as mx

    version = importlib.metadata.version("mlx")
    if mx.array([1, 2]).sum().item() != 3:
        return Finding("mlx", version, version, f"MLX {version} adds 1 and 2 wrongly: install it again.")
    return Finding("mlx", version, version)


def _device() -> Finding:
    from russet.engine.device import memory_bytes, on_gpu

    gpu, name, memory = on_gpu(), _device_name(), memory_bytes()
    cores = gpu_cores() if gpu else os.cpu_count()
    value = {"kind": "gpu" if gpu else "cpu", "name": name, "cores": cores, "memory_bytes": memory}
    kind = "GPU" if gpu else "CPU"
    count = f", {cores} cores" if cores else ""
    text = f"{kind}: {name}{count}, {readable_bytes(memory)} for models"
    if not gpu and _version(_CUDA):
        # Both wheels bring a libmlx.so to the same place, and the one installed last is the one there is.
        problem = (
            f"{_CUDA} is installed but MLX computes on the CPU: run 'pip install --force-reinstall --no-deps {_CUDA}', "
            "and see that the NVIDIA driver works."
        )
        return Finding("device", text, value, problem)
    return Finding("device", text, value)


def _dtype() -> Finding:
    from russet.engine.device import on_gpu

    name = "as stored" if on_gpu() else "float32"
    return Finding("dtype", name, name)


def _blas() -> Finding:
    from russet.engine.blas import use_fast_blas

    info = use_fast_blas()
    gflops, bandwidth = cpu_speed()
    text = f"{info.name}: {gflops:.0f} GFLOP/s in matrix products, {bandwidth:.0f} GB/s in matrix-vector products"
    value = {
        "name": info.name,
        "path": str(info.path) if info.path else None,
        "reason": info.reason,
        "matvec": info.matvec,
        "matmul_gflops": round(gflops, 1),
        "matvec_gbps": round(bandwidth, 1),
    }
    notes = "; ".join(note for note in (info.reason, info.matvec, _contention()) if note)
    return Finding("blas", f"{text} ({notes})" if notes else text, value)


def _contention() -> str:
    """BLAS threads wait for each other by spinning, which other programs' work turns into long stalls."""
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if sys.platform == "darwin" or load < 0.75 * cores or os.environ.get("OPENBLAS_NUM_THREADS"):
        return ""
    return f"other programs keep the cores busy, load {load:.1f}: OPENBLAS_NUM_THREADS=1 is faster then"


def _kernels() -> Finding:
    from russet.kernels.report import reports

    found = reports()
    value = [asdict(report) | {"error": report.error} for report in found]
    if len(reasons := {report.reason for report in found}) == 1 and not found[0].serves:
        return Finding("kernels", f"none: {reasons.pop()}", value)
    serving = sum(report.serves for report in found)
    text = f"{serving} of {len(found)} serve"
    return Finding("kernels", text, value, table=(_KERNEL_HEADER, *map(_kernel_row, found)))


_KERNEL_HEADER = ("kernel", "simulated", "variants checked", "error", "Russet", "MLX", "serves")


def _kernel_row(report: Report) -> tuple[str, ...]:
    serves = "yes" if report.serves else "no"
    return (
        report.name,
        "yes" if report.simulated else "no",
        f"{len(report.checks)} of {report.variants}",
        "" if report.error is None else f"{report.error:.1e}",
        *("" if seconds is None else f"{seconds * 1e6:.1f} us" for seconds in (report.russet_s, report.mlx_s)),
        f"{serves}: {report.reason}" if report.reason else serves,
    )


def _expansion() -> Finding:
    """From how many rows on a prompt's products expand packed weights first."""
    from russet.engine.device import on_gpu
    from russet.kernels.base import mode
    from russet.models.crossovers import Crossovers, device_key, summary

    if not on_gpu():
        return Finding("expansion", "a CPU expands weights when it loads them", {})
    found = Crossovers(device_key()).found
    if mode() == "off":
        return Finding("expansion", "off, since RUSSET_KERNELS is off", found)
    return Finding("expansion", summary(found) or "not measured yet: the first long prompt measures it", found)


def _cache() -> Finding:
    root = cache_root()
    # Looked at, not tried out: a diagnosis leaves no folders behind.
    nearest = next(folder for folder in (root, *root.parents) if folder.exists())
    writable = nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)
    free = shutil.disk_usage(nearest).free
    value = {"path": str(root), "writable": writable, "free_bytes": free}
    if not writable:
        problem = f"{nearest} cannot be written: mend that, or set RUSSET_CACHE to a folder that can."
        return Finding("cache", f"{root}, not writable", value, problem)
    return Finding("cache", f"{root}, {readable_bytes(free)} free", value)


def _models() -> Finding:
    from russet.models.cached import cached_models

    models = cached_models()
    text = ", ".join(f"{model.name} ({readable_bytes(model.nbytes)})" for model in models)
    return Finding("models", text or "none yet", [model.name for model in models])


def _prefixes() -> Finding:
    from russet.engine.prefix_store import size_limit

    limit = size_limit()
    value = {str(folder): folder_bytes(folder) for folder in (prefixes_dir(), documents_dir()) if folder.is_dir()}
    kept = ", ".join(f"{readable_bytes(nbytes)} in {folder}" for folder, nbytes in value.items())
    text = f"{kept}, at most {readable_bytes(limit)} each; delete a folder to clear it" if kept else "none yet"
    return Finding("prefixes", text, value)


def _extras() -> Finding:
    found = {name: _version(name) for name, _ in _EXTRAS}
    text = ", ".join(f"{name} {found[name] or 'absent'} ({purpose})" for name, purpose in _EXTRAS)
    return Finding("extras", text, found)


_CHECKS = (_python, _russet, _mlx, _device, _dtype, _blas, _kernels, _expansion, _cache, _models, _prefixes, _extras)


def cpu_speed() -> tuple[float, float]:
    """Return what MLX reaches on the CPU in float32: GFLOP/s multiplying 1024², GB/s of 113 MB times a vector."""
    import mlx.core as mx

    with mx.stream(mx.cpu):
        square = mx.random.normal((1024, 1024))
        tall, row = mx.random.normal((49152, 576)), mx.random.normal((1, 576))
        mx.eval(square, tall, row)
        matmul_s = _seconds(lambda: mx.eval(square @ square))
        matvec_s = _seconds(lambda: mx.eval(row @ tall.T))
    return 2 * 1024**3 / matmul_s / 1e9, tall.nbytes / matvec_s / 1e9


def _seconds(work: Callable[[], None]) -> float:
    """Return the shortest of five runs after one that does not count: other programs can only lengthen it."""
    work()
    times = []
    for _ in range(5):
        start = now()
        work()
        times.append(now() - start)
    return min(times)


def _device_name() -> str:
    import mlx.core as mx

    from russet.engine.device import on_gpu

    if on_gpu():
        return str(mx.device_info().get("device_name", "unknown"))
    return cpu_name() or "unknown"


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
