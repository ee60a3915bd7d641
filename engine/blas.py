"""Give MLX on a Linux CPU an optimised BLAS in place of the reference one that its wheel brings.

Reference BLAS multiplies matrices some thirty times slower than OpenBLAS. MLX's calls are sent to the faster library
by replacing addresses in memory; no file is changed, and other packages in the process keep the BLAS they have.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import logging
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from russet.engine.gemv import forwarding_gemm
from russet.engine.import_slots import import_slots, library_of, read_slot, symbol_address, write_slot

_logger = logging.getLogger("russet")

_SYSTEM_OPENBLAS = "libopenblas.so.0"
_GEMM = "cblas_sgemm"
_GEMV = "cblas_sgemv"
_OWN = "MLX's own"

# What MLX calls: general matrix products, and LAPACK for mx.linalg.
_ROUTINES = (
    *("cblas_sgemm", "cblas_dgemm", "cblas_cgemm", "cgeev_", "cgesdd_", "cheevd_"),
    *(f"{kind}{name}_" for kind in "sd" for name in ("geev", "geqrf", "gesdd", "getrf", "getri")),
    *(f"{kind}{name}_" for kind in "sd" for name in ("orgqr", "potrf", "syevd", "trtri")),
)


@dataclass(frozen=True)
class BlasInfo:
    """The BLAS that serves MLX on the CPU: what it is, its file, and why it is this one where a faster one is usual.

    `matvec` tells why one-row products do not go through the BLAS's own routine for them; empty where they do.
    """

    name: str
    path: Path | None = None
    reason: str = ""
    matvec: str = ""


@functools.cache
def use_fast_blas() -> BlasInfo:
    """Let MLX compute with the first of $RUSSET_BLAS, scipy-openblas32 and the system's OpenBLAS that loads.

    `RUSSET_BLAS=off` keeps MLX's own, `RUSSET_BLAS=/path/to/lib.so` names another library with 32-bit integers.
    Works before and after MLX has computed, once a process; does nothing on macOS, where Accelerate serves.
    Never raises: what did not work is told in the result and, once, to the `russet` logger.
    """
    if sys.platform == "darwin":
        return BlasInfo("Accelerate")
    wanted = os.environ.get("RUSSET_BLAS", "")
    try:
        info = _choose(wanted)
    except (ImportError, OSError) as error:
        info = BlasInfo(_OWN, None, str(error))
    if info.reason and wanted != "off":
        _logger.warning("matrix products go through %s, since %s", info.name, info.reason)
    return info


def _choose(wanted: str) -> BlasInfo:
    mlx = _loaded_mlx()
    slots = import_slots(mlx)
    if _GEMM not in slots:
        return BlasInfo(_OWN, None, f"{mlx._name} does not import {_GEMM}")
    serving = library_of(read_slot(slots[_GEMM]))
    if wanted == "off":
        return BlasInfo(_OWN, serving, "RUSSET_BLAS=off")
    if read_slot(slots[_GEMM]) != symbol_address(mlx, _GEMM):
        return BlasInfo(serving.name if serving else "unknown", serving, "it was in place before Russet")

    failures = []
    for name, path in _candidates(wanted):
        try:
            library = ctypes.CDLL(str(path))
        except OSError as error:
            failures.append(f"{name} names {path}, which cannot be loaded ({error})")
            continue
        redirected = _redirect(mlx, slots, library)
        if redirected:
            serving, matvec = redirected
            return BlasInfo(name, library_of(serving), "; ".join(failures), matvec)
        failures.append(f"{name} names {path}, which does not define {_GEMM}")
    return BlasInfo(_OWN, serving, "; ".join(failures))


def _loaded_mlx() -> ctypes.CDLL:
    import mlx.core as mx

    # RTLD_NOLOAD: a second copy of MLX in the process would have slots that nobody calls through.
    return ctypes.CDLL(str(Path(mx.__file__).parent / "lib" / "libmlx.so"), mode=os.RTLD_NOW | os.RTLD_NOLOAD)


def _candidates(wanted: str) -> Iterator[tuple[str, Path]]:
    if wanted:
        yield "RUSSET_BLAS", Path(wanted)
    package = importlib.util.find_spec("scipy_openblas32")
    if package and package.origin:
        yield "scipy-openblas32", Path(package.origin).parent / "lib" / "libscipy_openblas.so"
    yield "the system's OpenBLAS", Path(_SYSTEM_OPENBLAS)


def _redirect(mlx: ctypes.CDLL, slots: dict[str, int], library: ctypes.CDLL) -> tuple[int, str] | None:
    """Send MLX's calls to those routines that `library` defines; None, and nothing done, if gemm is not among them.

    Returns gemm's address, and why one-row products do not go to gemv (empty where they do).
    """
    found = {name: _address(library, name) for name in _ROUTINES}
    serving = found[_GEMM]
    if not serving:
        return None
    found[_GEMM], matvec = _with_gemv(serving, _address(library, _GEMV))
    for name, address in found.items():
        slot = slots.get(name)
        # A slot with another address than the linker would have put there belongs to somebody else.
        if slot and address and read_slot(slot) == symbol_address(mlx, name):
            write_slot(slot, address)
    return serving, matvec


def _with_gemv(gemm: int, gemv: int | None) -> tuple[int, str]:
    if not gemv:
        return gemm, f"the library does not define {_GEMV}"
    try:
        return forwarding_gemm(gemm, gemv), ""
    except OSError as error:
        return gemm, str(error)


def _address(library: ctypes.CDLL, name: str) -> int | None:
    # scipy-openblas32 puts scipy_ before every name.
    return symbol_address(library, name) or symbol_address(library, f"scipy_{name}")
