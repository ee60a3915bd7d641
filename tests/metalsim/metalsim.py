"""Run the Metal source of an mx.fast.metal_kernel on a CPU, one fiber a GPU thread.

`metal_kernel` takes what mx.fast.metal_kernel takes. It finds accesses past a buffer's end (before its start with
`guard_start`), writes to inputs, divergent barriers, and threadgroup memory over 32 KB. Results that change with the
`order` of the threads show a missing barrier, and those that change with `fill` an element that nobody wrote. It has
no model of time, nor of races between threadgroups.
"""

from __future__ import annotations

import ctypes
import hashlib
import math
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import mlx.core as mx
import numpy as np
from guarded_buffer import GuardedBuffer
from msl_signature import Template, metal_source, shape_arguments
from msl_to_cpp import MetalError, to_cpp

ORDERS = ("forward", "reverse", "random")
INCLUDE = Path(__file__).resolve().parent / "include"
COMPILER = next((name for name in (os.environ.get("METALSIM_CXX", ""), "g++", "clang++") if shutil.which(name)), None)
_FLAGS = [
    *("-std=c++17", "-O2", "-w", "-fPIC", "-shared", "-fno-strict-aliasing", "-ffp-contract=off"),
    *("-fno-stack-protector", "-fstack-clash-protection", "-fno-omit-frame-pointer"),
    *(("-mavx2", "-mfma", "-mf16c") if platform.machine() == "x86_64" else ()),
]
_CACHE = Path(os.environ.get("METALSIM_CACHE", f"{tempfile.gettempdir()}/russet-metalsim-{os.getuid()}"))

Dimensions = tuple[int, int, int]


class _D3(ctypes.Structure):
    _fields_ = tuple((axis, ctypes.c_uint) for axis in "xyz")


class _Launch(ctypes.Structure):
    _fields_ = (("grid", _D3), ("threadgroup", _D3), ("order", ctypes.c_int), ("seed", ctypes.c_int))


def metal_kernel(
    name: str,
    input_names: Sequence[str],
    output_names: Sequence[str],
    source: str,
    header: str = "",
    ensure_row_contiguous: bool = True,
) -> Callable[..., list[mx.array]]:
    """Return a callable with the keywords of MLX's own and three more.

    `order` is one of ORDERS, `fill` the byte that outputs start with, `guard_start` puts the guard before the buffers.
    """

    def call(
        *,
        inputs: Sequence[mx.array],
        output_shapes: Sequence[Sequence[int]],
        output_dtypes: Sequence[mx.Dtype],
        grid: Dimensions,
        threadgroup: Dimensions,
        template: Template = (),
        order: str = "forward",
        fill: int = 0xFF,
        guard_start: bool = False,
    ) -> list[mx.array]:
        named = list(zip(input_names, inputs, strict=True))
        outputs = list(zip(output_names, output_dtypes, strict=True))
        function, arguments, metal = metal_source(name, header, source, named, outputs, template)
        if ensure_row_contiguous:
            named = [(key, mx.contiguous(array)) for key, array in named]
        data = [piece for key, array in named for piece in _input_bytes(key, array, source)]
        shapes = zip(output_shapes, output_dtypes, strict=True)
        empty = [bytes([fill]) * (math.prod(shape) * dtype.size) for shape, dtype in shapes]
        results = run(metal, function, arguments, data, empty, grid, threadgroup, order, guard_start)
        return [
            mx.array(np.frombuffer(result, np.uint8)).view(dtype).reshape(shape)
            for result, dtype, shape in zip(results, output_dtypes, output_shapes, strict=True)
        ]

    return call


def run(
    metal: str,
    function: str,
    template_arguments: str,
    inputs: Sequence[bytes],
    outputs: Sequence[bytes],
    grid: Dimensions,
    threadgroup: Dimensions,
    order: str = "forward",
    guard_start: bool = False,
) -> list[bytes]:
    """Run a [[kernel]] function whose buffers are `inputs`, then `outputs`; return what the outputs hold after it."""
    source, names = to_cpp(metal, function, template_arguments)
    library = _compile(source)
    if len(names) != len(inputs) + len(outputs):
        raise MetalError(f"{function} has {len(names)} buffers, {len(inputs) + len(outputs)} were given")
    buffers = [
        GuardedBuffer(names[i], data, i >= len(inputs), guard_start) for i, data in enumerate([*inputs, *outputs])
    ]
    try:
        starts = (ctypes.c_void_p * len(buffers))(*(buffer.start for buffer in buffers))
        ends = (ctypes.c_void_p * len(buffers))(*(buffer.end for buffer in buffers))
        labels = (ctypes.c_char_p * len(buffers))(*(buffer.name.encode() for buffer in buffers))
        library.msim_ranges(len(buffers), starts, ends, labels)
        launch = _Launch(_D3(*grid), _D3(*threadgroup), ORDERS.index(order), 1)
        if library.msim_entry(starts, ctypes.byref(launch)):
            raise MetalError(f"{function}: {library.msim_error().decode()}")
        return [buffer.read() for buffer in buffers[len(inputs) :]]
    finally:
        for buffer in buffers:
            buffer.free()


def _input_bytes(name: str, array: mx.array, source: str) -> list[bytes]:
    """The array, then its shape, strides and rank where the source asks for them."""
    words = {1: mx.uint8, 2: mx.uint16, 4: mx.uint32, 8: mx.uint64}
    memory = np.asarray(
        array.view(words[array.dtype.size])
    )  # not a copy: what a slice leaves out lies between its rows
    strides = [stride // array.dtype.size for stride in memory.strides]
    reach = sum((count - 1) * stride for count, stride in zip(array.shape, memory.strides, strict=True))
    extra = {
        "_shape": np.array(array.shape, np.int32),
        "_strides": np.array(strides, np.int64),
        "_ndim": np.array([array.ndim], np.int32),
    }
    data = ctypes.string_at(memory.ctypes.data, reach + array.dtype.size)
    return [data, *(extra[suffix].tobytes() for suffix in shape_arguments(name, array, source))]


@cache
def _headers() -> str:
    return "".join(path.read_text() for path in sorted(INCLUDE.iterdir()))


@cache
def _compile(source: str) -> ctypes.CDLL:
    if COMPILER is None:
        raise MetalError("no C++ compiler: install g++ or clang++, or name one in METALSIM_CXX")
    key = hashlib.sha256("\0".join([source, COMPILER, *_FLAGS, _headers()]).encode()).hexdigest()[:24]
    library = _CACHE / f"{key}.so"
    if not library.exists():
        _CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=_CACHE) as scratch:
            text, built = Path(scratch, "kernel.cpp"), Path(scratch, "kernel.so")
            text.write_text(source)
            command = [COMPILER, *_FLAGS, f"-I{INCLUDE}", str(text), "-o", str(built)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                errors = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
                raise MetalError("the source does not compile:\n" + "\n".join(errors[:12]))
            built.replace(library)
    loaded = ctypes.CDLL(str(library))
    loaded.msim_error.restype = ctypes.c_char_p
    return loaded
