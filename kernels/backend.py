"""Which GPU interface MLX has here, and how a kernel body becomes source text for it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import mlx.core as mx

Backend = Literal["metal", "cuda"]

SOURCES = Path(__file__).resolve().parent / "src"

CORES = 132
"""Of an H100: CUDA's work is shared out among so many. Apple's GPUs have 8 to 80."""


@cache
def backend() -> Backend | None:
    """The interface that custom kernels run through, None where MLX computes on a CPU."""
    if mx.default_device().type != mx.DeviceType.gpu:
        return None
    return "metal" if mx.metal.is_available() else "cuda"


@cache
def text(name: str) -> str:
    """One file of kernels/src."""
    return (SOURCES / name).read_text()


def header(includes: Sequence[str], target: Backend) -> str:
    """The text in front of a kernel function: the back-end's prelude, then the headers that the body names.

    It ends its last line, for MLX goes on right behind it, and a line with an include takes nothing else.
    """
    return "".join(_short(_file(name, target), target) + "\n" for name in ("prelude.h", *includes))


def body(name: str, inputs: Sequence[str], target: Backend) -> str:
    """The text of a kernel function. MLX looks there for the inputs' shapes and strides that it is to pass."""
    if target == "metal":
        return _short(name, target)
    suffixes = ("_shape", "_strides", "_ndim")
    used = [each + suffix for each in inputs for suffix in suffixes if each + suffix in text(name)]
    return f"// {' '.join(used)}\n{_short(name, target)}"


def build(
    name: str,
    body_file: str,
    includes: Sequence[str],
    inputs: Sequence[str],
    outputs: Sequence[str],
    target: Backend,
    strided: bool = False,
) -> Callable[..., list[mx.array]]:
    """MLX's callable for a kernel; it compiles when its result is first evaluated.

    With `strided` inputs come as they lie in memory, and the body goes by their strides; otherwise MLX copies slices.
    CUDA kernels can only be made where MLX has CUDA, so call this when one is needed and not before.
    """
    make: Callable[..., Any] = mx.fast.metal_kernel if target == "metal" else mx.fast.cuda_kernel
    return make(
        name=name,
        input_names=list(inputs),
        output_names=list(outputs),
        source=body(body_file, inputs, target),
        header=header(includes, target),
        ensure_row_contiguous=not strided,
    )


def _file(name: str, target: Backend) -> str:
    """The back-end's own form of a header that has one for each."""
    own = name.replace(".h", f"_{target}.h")
    return own if (SOURCES / own).exists() else name


@cache
def _short(name: str, target: Backend) -> str:
    """A file for the compiler, in few characters: MLX hashes the whole text at every launch, 0.3 us a kilobyte.

    CUDA's compiler reads files, so an include will do. Metal's takes text only, so it goes without comments and
    indentation.
    """
    path = str(SOURCES / name)
    if target == "cuda" and not set(path) & set('"\\\n'):
        return f'#include "{path}"'
    lines = (re.sub(r"\s+", " ", line.partition("//")[0]).strip() for line in text(name).splitlines())
    tight = (line if line.startswith("#") else re.sub(r" ?([,;(){}=?]) ?", r"\1", line) for line in lines)
    return "\n".join(line for line in tight if line)
