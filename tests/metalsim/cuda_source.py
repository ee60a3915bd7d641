"""The CUDA source that MLX makes of a custom kernel (mlx/backend/cuda/custom_kernel.cpp, MLX 0.32), for NVRTC.

NVRTC compiles without a GPU. It and its headers come from Python packages, in the site-packages folder that
$NVRTC_PACKAGES names, or in this interpreter's own:

    pip install --target FOLDER nvidia-cuda-nvrtc-cu12 nvidia-cuda-runtime-cu12 nvidia-cuda-cccl-cu12
"""

from __future__ import annotations

import ctypes
import os
import sysconfig
from functools import cache
from pathlib import Path

import mlx.core as mx
from msl_signature import shape_arguments

from russet.kernels import backend
from russet.kernels.base import Inputs, Kernel

_PACKAGES = Path(os.environ.get("NVRTC_PACKAGES") or sysconfig.get_paths()["purelib"])
LIBRARY = next(iter(sorted(_PACKAGES.glob("nvidia/*/lib/libnvrtc.so.*"))), None)
_INCLUDES = sorted(
    {path.parent for name in ("cuda_fp16.h", "cuda") for path in _PACKAGES.glob(f"nvidia/*/include/{name}")}
)
_INCLUDES += sorted(_PACKAGES.glob("nvidia/*/include/cccl"))
USABLE = LIBRARY is not None and all(
    any((folder / name).is_file() for folder in _INCLUDES) for name in ("cuda_bf16.h", "cuda/std/array")
)

# What MLX's own headers, which lie in its library as text, declare of what a custom kernel sees.
_PREAMBLE = """#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda/std/array>
#include <cuda/std/cstdint>
using cuda::std::uint32_t;
namespace mlx::core::cu {
using Shape = cuda::std::array<int32_t, 10>;
using Strides = cuda::std::array<int64_t, 10>;
}
"""
_TYPES = {mx.float32: "float", mx.float16: "__half", mx.bfloat16: "__nv_bfloat16"}
_OPTIONS = ("--device-as-default-execution-space", "--std=c++20", "--gpu-architecture=compute_90")


def cuda_source(kernel: Kernel, inputs: Inputs) -> str:
    """The whole text for one call."""
    launch, body = kernel.launch("cuda", *inputs), backend.body(kernel.body, kernel.inputs, "cuda")
    parameters = []
    kinds = {"_shape": "Shape", "_strides": "Strides", "_ndim": "int"}
    for name, array in zip(kernel.inputs, inputs, strict=True):
        parameters.append(f"const {_type(array.dtype)}* {name}")
        asked = shape_arguments(name, array, body)
        parameters += [f"const __grid_constant__ {kinds[suffix]} {name}{suffix}" for suffix in asked]
    results = zip(kernel.outputs, launch.output_dtypes, strict=True)
    parameters += [f"{_type(dtype)}* {name}" for name, dtype in results]
    template = [
        f"  using {name} = {_type(value)};" if isinstance(value, mx.Dtype) else f"  constexpr int {name} = {value};"
        for name, value in launch.template
    ]
    lines = (
        # As MLX does, nothing between the header and what follows, nor between the body and its brace.
        f"{_PREAMBLE}{backend.header(kernel.headers, 'cuda')}namespace mlx::core::cu {{",
        *(f"__global__ void {kernel.name}({', '.join(parameters)}) {{", *template, f"{body}\n}}", "}"),
    )
    return "\n".join(lines)


def nvrtc_errors(source: str) -> list[str]:
    """NVRTC's errors for a whole text, [] if it compiles."""
    library, program = _library(), ctypes.c_void_p()
    options = [option.encode() for option in (*_OPTIONS, *(f"--include-path={folder}" for folder in _INCLUDES))]
    if library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernel.cu", 0, None, None):
        raise RuntimeError(f"{LIBRARY} made no program")
    try:
        failed = library.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
        size = ctypes.c_size_t()
        library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        library.nvrtcGetProgramLog(program, log)
        lines = log.value.decode().splitlines()
        return ([line for line in lines if "error" in line] or [f"NVRTC returned {failed}"]) if failed else []
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


@cache
def _library() -> ctypes.CDLL:
    return ctypes.CDLL(str(LIBRARY))


def _type(dtype: mx.Dtype) -> str:
    return _TYPES.get(dtype) or f"{str(dtype).rpartition('.')[2]}_t"
