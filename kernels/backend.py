"""Which GPU interface MLX has here, and how a kernel body becomes source text for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import mlx.core as mx

Backend = Literal["metal", "cuda"]

SOURCES = Path(__file__).resolve().parent / "src"


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
    """The text in front of a kernel function: the back-end's prelude, then the headers that the body names."""
    return "\n".join(text(name) for name in (f"prelude_{target}.h", *includes))


def build(
    name: str,
    body: str,
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
        source=text(body),
        header=header(includes, target),
        ensure_row_contiguous=not strided,
    )
