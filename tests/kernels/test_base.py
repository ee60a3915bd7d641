"""The self-check and its switches, with the simulator in the place of a GPU."""

from __future__ import annotations

import logging
import math
import re
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import pytest
from metalsim import COMPILER, metal_kernel

from russet.engine.errors import InvalidOptionError
from russet.kernels import backend as backend_module
from russet.kernels import base
from russet.kernels.base import Kernel, Launch, mode

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler: install g++ or clang++")
DOUBLE = "uint i = thread_position_in_grid.x; if (i < x_shape[0]) out[i] = T(2.0f * float(x[i]));"


def inputs(size: int = 40, dtype: mx.Dtype = mx.float32) -> list[mx.array]:
    return [mx.random.normal((size,), key=mx.random.key(size)).astype(dtype)]


def launch(target: str, x: mx.array) -> Launch:
    return Launch((-(-x.size // 32) * 32, 1, 1), (32, 1, 1), (("T", x.dtype),), (tuple(x.shape),), (x.dtype,))


@pytest.fixture(autouse=True)
def fresh_mode(monkeypatch):
    monkeypatch.delenv("RUSSET_KERNELS", raising=False)
    mode.cache_clear()
    yield
    mode.cache_clear()


@pytest.fixture
def double(monkeypatch):
    """A kernel that doubles, whose body a test may replace by another."""

    def make(source: str = DOUBLE) -> Kernel:
        def build(name, body, headers, names, outputs, target, strided):
            return metal_kernel(name, names, outputs, source)

        monkeypatch.setattr(base, "backend", lambda: "metal")
        monkeypatch.setattr(base, "build", build)
        return Kernel(
            name="double",
            body="double.metal",
            headers=(),
            inputs=("x",),
            outputs=("out",),
            reference=lambda x: [x * 2],
            launch=launch,
            sample=lambda x: inputs(dtype=x.dtype),
            examples=lambda target: iter([inputs(), inputs(dtype=mx.float16)]),
            tolerance={mx.float32: 1e-6, mx.float16: 1e-3},
        )

    return make


@needs_compiler
def test_a_sound_kernel_serves_and_says_so(double, caplog):
    kernel = double()
    (x,) = inputs(100)
    assert mx.array_equal(kernel(x)[0], 2 * x)
    assert kernel.disabled == ""
    assert [(check.variant, check.error) for check in kernel.checks] == [("T=float32 float32", 0.0)]
    assert caplog.records == []


@needs_compiler
def test_each_variant_is_checked_once(double, monkeypatch):
    kernel = double()
    compared = []
    compare = Kernel._compare
    monkeypatch.setattr(Kernel, "_compare", lambda self, *rest: compared.append(rest[0]) or compare(self, *rest))
    for size in (40, 41, 40):
        kernel(*inputs(size))
    kernel(*inputs(40, mx.float16))
    assert compared == ["T=float32 float32", "T=float16 float16"]


@needs_compiler
@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (DOUBLE.replace("2.0f", "2.01f"), "its error against the reference is 5.0e-03, and 1e-06 is allowed"),
        (DOUBLE.replace("i < x_shape[0]", "i > 3 && i < x_shape[0]"), "its error against the reference is nan"),
        (DOUBLE.replace("out[i]", "missing[i]"), "it does not run: kernel.metal:"),
    ],
    ids=["wrong", "unwritten", "uncompiled"],
)
def test_a_broken_kernel_warns_once_and_the_reference_serves(double, caplog, source, reason):
    kernel = double(source)
    with caplog.at_level(logging.WARNING, "russet"):
        for size in (40, 50, 60):
            (x,) = inputs(size)
            assert mx.array_equal(kernel(x)[0], 2 * x)
        kernel.check(inputs(dtype=mx.float16), "metal")  # another variant, which is as broken
    (record,) = caplog.records
    assert record.name == "russet"
    assert record.getMessage().startswith(f"Kernel double is switched off, and MLX's operations serve: {reason}")
    assert len(kernel.checks) == 2
    assert kernel.disabled.startswith(reason)
    assert kernel.disabled.endswith("(T=float32 float32)")


@needs_compiler
def test_a_kernel_that_is_switched_off_serves_no_variant_any_more(double):
    """Not even one that passed its own check before."""
    kernel = double(DOUBLE.replace("2.0f", "(sizeof(T) == 2 ? 3.0f : 2.0f)"))
    (x,) = inputs()
    assert mx.array_equal(kernel(x)[0], 2 * x)
    assert not kernel.disabled
    kernel(*inputs(dtype=mx.float16))
    assert kernel.disabled
    kernel.reference = lambda x: [mx.zeros_like(x)]
    assert mx.array_equal(kernel(x)[0], mx.zeros_like(x))


@needs_compiler
def test_every_output_is_compared(double, monkeypatch):
    kernel = double("uint i = thread_position_in_grid.x; out[i] = T(2.0f * x[i]); third[i] = T(3.01f * x[i]);")
    kernel.outputs = ("out", "third")
    kernel.reference = lambda x: [x * 2, x * 3]
    kernel.launch = lambda target, x: replace(
        launch(target, x), output_shapes=(x.shape,) * 2, output_dtypes=(x.dtype,) * 2
    )
    kernel.sample = lambda x: inputs(32)
    (x,) = inputs(32)
    assert mx.array_equal(kernel(x)[1], 3 * x)
    assert kernel.disabled.startswith("its error against the reference is 3.3e-03")


@pytest.mark.parametrize(
    ("device", "metal", "expected"), [("cpu", True, None), ("gpu", True, "metal"), ("gpu", False, "cuda")]
)
def test_the_interface_is_that_of_the_device_that_computes(monkeypatch, device, metal, expected):
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(getattr(mx, device), 0))
    monkeypatch.setattr(mx.metal, "is_available", lambda: metal)
    assert backend_module.backend.__wrapped__() == expected


def test_without_a_gpu_the_reference_serves(double, monkeypatch):
    kernel = double()
    monkeypatch.setattr(base, "backend", lambda: None)
    monkeypatch.setattr(base, "build", lambda *_: pytest.fail("a kernel was built"))
    (x,) = inputs()
    assert mx.array_equal(kernel(x)[0], 2 * x)
    assert kernel.checks == ()


@pytest.mark.parametrize("chosen", ["off", "reference"])
def test_the_environment_switches_kernels_off(double, monkeypatch, chosen):
    monkeypatch.setenv("RUSSET_KERNELS", chosen)
    kernel = double()
    monkeypatch.setattr(base, "build", lambda *_: pytest.fail("a kernel was built"))
    (x,) = inputs()
    assert mx.array_equal(kernel(x)[0], 2 * x)
    assert kernel.checks == ()


def test_another_value_is_refused(monkeypatch):
    monkeypatch.setenv("RUSSET_KERNELS", "yes")
    with pytest.raises(InvalidOptionError, match="set it to on, reference or off"):
        mode()


def test_the_error_of_nothing_is_not_a_number():
    assert math.isnan(base.relative_error(mx.array([math.nan]), mx.ones((1,))))


def test_cuda_kernels_are_made_on_demand_out_of_files(monkeypatch):
    made = []
    monkeypatch.setattr(mx.fast, "cuda_kernel", lambda **options: made.append(options) or options)
    headers, inputs = ("matrices.h", "q2.h"), ("x", "w", "scales")
    backend_module.build("q2_tiles", "q2_tiles.metal", headers, inputs, ("out",), "cuda")
    (options,) = made
    files = [Path(line.split('"')[1]) for text in (options["header"], options["source"]) for line in includes(text)]
    assert [file.name for file in files] == ["prelude_cuda.h", "matrices_cuda.h", "q2.h", "q2_tiles.metal"]
    assert all(file.is_file() for file in files)
    # MLX passes the shapes that it finds in the text.
    assert options["source"].splitlines()[0] == "// x_shape w_shape"
    assert len(options["header"]) + len(options["source"]) < 1000


@pytest.mark.parametrize("target", ["metal", "cuda"])
def test_a_header_ends_its_last_line(target):
    """MLX writes "namespace ..." right behind it, and a line with an include takes nothing else."""
    assert backend_module.header(("matvec.h", "activations.h"), target).endswith("\n")


def includes(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("#include")]


def test_the_reason_of_a_compiler_is_its_first_error():
    log = "Failed to compile kernel: k.cu(8): warning: extra text\n\nk.cu(9): error: unknown name\n1 error detected"
    assert base._reason(RuntimeError(log)) == "k.cu(9): error: unknown name"
    assert base._reason(RuntimeError("out of memory\nsomewhere")) == "out of memory"


def test_metals_text_is_short_and_says_the_same():
    long, short = backend_module.text("matvec.h"), backend_module.header(("matvec.h",), "metal")
    assert "//" not in short
    assert len(backend_module.header(("matvec.h",), "metal")) < 0.8 * len(backend_module.text("prelude_metal.h") + long)
    assert "".join(re.sub("//.*", "", long).split()) in "".join(short.split())
