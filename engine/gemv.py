"""Compile gemv.c once and keep it in the cache: the part of the BLAS redirection that ctypes alone cannot do."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
from pathlib import Path

from russet.engine.errors import StorageError
from russet.engine.paths import cache_root
from russet.engine.storage import make_folder

_SOURCE = Path(__file__).with_name("gemv.c")
_COMPILERS = ("cc", "gcc", "clang")


def forwarding_gemm(gemm: int, gemv: int) -> int:
    """The address of a cblas_sgemm that hands one-row products to `gemv` and everything else to `gemm`.

    Raises OSError where it cannot be compiled or kept; the message says why and what to do.
    """
    library = ctypes.CDLL(str(_compiled()))
    library.russet_use(ctypes.c_void_p(gemm), ctypes.c_void_p(gemv))
    address = ctypes.cast(library.russet_sgemm, ctypes.c_void_p).value
    assert address is not None
    return address


def _compiled() -> Path:
    source = _SOURCE.read_bytes()
    digest = hashlib.sha256(source + platform.machine().encode()).hexdigest()[:16]
    target = cache_root() / "compiled" / f"gemv-{digest}.so"
    # In a cache that others may write to, only what this user compiled is loaded.
    if target.exists() and target.stat().st_uid == os.getuid():
        return target
    compiler = os.environ.get("CC") or next((name for name in _COMPILERS if shutil.which(name)), None)
    if compiler is None:
        raise OSError("there is no C compiler, so decoding on this CPU is a quarter slower: install gcc or clang")
    try:
        make_folder(target.parent)
    except StorageError as error:
        raise OSError(str(error)) from error
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        command = [*compiler.split(), "-O2", "-shared", "-fPIC", "-o", str(temporary), str(_SOURCE)]
        run = subprocess.run(command, capture_output=True, text=True)
        if run.returncode:
            raise OSError(f"{compiler} could not compile {_SOURCE.name}: {run.stderr.strip()[-200:]}")
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return target
