"""What is said of a kernel, with the simulator in the place of a GPU."""

from __future__ import annotations

import mlx.core as mx
import pytest
from metalsim import COMPILER, metal_kernel

from russet.kernels import base, report
from russet.kernels.base import Kernel, Launch, mode
from russet.kernels.report import Report, reports
from russet.kernels.trials import Trial

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler: install g++ or clang++")
TRIPLE = "uint i = thread_position_in_grid.x; out[i] = T(FACTOR * float(x[i]));"
DTYPES = (mx.float32, mx.float16)


def inputs(size: int, dtype: mx.Dtype = mx.float32) -> list[mx.array]:
    return [mx.random.normal((size,), key=mx.random.key(size)).astype(dtype)]


def launch(target: str, x: mx.array) -> Launch:
    return Launch((x.size, 1, 1), (32, 1, 1), (("T", x.dtype),), (tuple(x.shape),), (x.dtype,))


def triple() -> Kernel:
    return Kernel(
        name="triple",
        body="triple.metal",
        headers=(),
        inputs=("x",),
        outputs=("out",),
        reference=lambda x: [x * 3],
        launch=launch,
        sample=lambda x: inputs(32, x.dtype),
        examples=lambda target: iter([inputs(32, dtype) for dtype in DTYPES]),
        tolerance=dict.fromkeys(DTYPES, 1e-3),
    )


@pytest.fixture
def one(monkeypatch):
    """The report of the only kernel, whose factor is 3 where it is right."""

    def told(factor: str = "3.0f") -> Report:
        def build(name, body, headers, names, outputs, target, strided):
            return metal_kernel(name, names, outputs, TRIPLE.replace("FACTOR", factor))

        monkeypatch.setattr(base, "build", build)
        monkeypatch.setattr(base, "_made", {})
        kernel, (x,) = triple(), inputs(64)
        monkeypatch.setattr(report, "kernels", lambda: (kernel,))
        monkeypatch.setattr(report, "trials", lambda size: {"triple": lambda: Trial(kernel, [x], lambda: x * 3)})
        (found,) = reports()
        return found

    monkeypatch.delenv("RUSSET_KERNELS", raising=False)
    mode.cache_clear()
    monkeypatch.setattr(base, "backend", lambda: "metal")
    monkeypatch.setattr(report, "backend", lambda: "metal")
    monkeypatch.setattr(report, "SIMULATED", frozenset(["triple.metal"]))
    yield told
    mode.cache_clear()


@needs_compiler
def test_one_variant_is_checked_and_timed(one):
    found = one()
    assert (found.name, found.simulated, found.serves, found.reason) == ("triple", True, True, "")
    assert [check.variant for check in found.checks] == ["T=float32 float32"]
    assert (found.variants, found.error) == (2, 0.0)
    assert found.russet_s is not None and found.mlx_s is not None
    assert min(found.russet_s, found.mlx_s) > 0


@needs_compiler
def test_a_kernel_that_is_off_is_not_timed(one):
    found = one("3.01f")
    assert not found.serves
    assert found.reason.startswith("its error against the reference is 3.3e-03, and 1e-03 is allowed")
    assert (found.russet_s, found.mlx_s) == (None, None)


@needs_compiler
def test_forms_of_one_name_are_told_of_together(one):
    one()
    (kernel,) = report.kernels()
    half, broken = triple(), triple()
    half.check(inputs(64, mx.float16), "metal")
    broken.tolerance[mx.float32] = -1.0
    broken.check(inputs(64), "metal")
    (found,) = reports()
    assert found.serves and kernel.disabled == ""
    assert found.reason == broken.disabled != ""
    assert sorted(check.variant for check in found.checks) == ["T=float16 float16", "T=float32 float32"]
    assert found.variants == 2


@needs_compiler
def test_of_one_variant_a_failure_is_what_is_told(one):
    """Whichever form of the kernel was checked first."""
    one()
    broken = triple()
    broken.tolerance[mx.float32] = -1.0
    broken.check(inputs(64), "metal")
    sound = triple()
    sound.check(inputs(64), "metal")
    (found,) = reports()
    (check,) = found.checks
    assert check.reason != ""


def test_a_body_that_no_test_runs_is_not_called_simulated(one, monkeypatch):
    monkeypatch.setattr(report, "SIMULATED", frozenset())
    monkeypatch.setattr(report, "seconds", lambda call: 1.0)
    monkeypatch.setattr(Kernel, "check", lambda *_: None)
    assert not one().simulated


@pytest.mark.parametrize("chosen", ["off", "reference"])
def test_the_environment_is_named(one, monkeypatch, chosen):
    monkeypatch.setenv("RUSSET_KERNELS", chosen)
    found = one()
    assert (found.serves, found.reason, found.checks) == (False, f"RUSSET_KERNELS={chosen}", ())


def test_without_a_gpu_nothing_is_tried(one, monkeypatch):
    monkeypatch.setattr(report, "backend", lambda: None)
    found = one()
    assert (found.serves, found.reason, found.russet_s) == (False, "MLX computes on a CPU here", None)
