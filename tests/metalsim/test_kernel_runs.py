"""The run that every kernel's test goes through fails where it has to."""

from __future__ import annotations

import kernel_runs
import mlx.core as mx
import pytest
from kernel_runs import simulate_all_orders
from metalsim import COMPILER
from msl_to_cpp import MetalError

from russet.kernels.base import Kernel, Launch

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler: install g++ or clang++")

WRITES_TWICE = """
    threadgroup float shared[1];
    shared[0] = float(i);
    simdgroup_barrier(mem_flags::mem_threadgroup);
    out[i] = shared[0];
"""


@pytest.fixture
def run(monkeypatch):
    """Runs a body over 32 numbers in all orders; `i` is the thread."""

    def told(body: str) -> list[float]:
        monkeypatch.setattr(kernel_runs, "body", lambda *_: f"uint i = thread_position_in_grid.x;\n{body}")
        kernel = Kernel(
            name="probe",
            body="probe.metal",
            headers=(),
            inputs=("x",),
            outputs=("out",),
            reference=lambda x: [x],
            launch=lambda target, x: Launch((32, 1, 1), (32, 1, 1), (), ((32,),), (mx.float32,)),
            sample=lambda x: [x],
            examples=lambda target: iter(()),
            tolerance={},
        )
        (out,) = simulate_all_orders(kernel, [mx.arange(32, dtype=mx.float32)])
        return list(out)

    return told


def test_a_sound_body_gives_its_outputs(run):
    assert run("out[i] = 2.0f * x[i];") == [2 * i for i in range(32)]


@pytest.mark.parametrize("body", ["if (i != 7) out[i] = x[i];", WRITES_TWICE], ids=["unwritten", "race"])
def test_results_that_differ_between_the_orders_fail(run, body):
    with pytest.raises(AssertionError, match="follows the order of threads, or it leaves elements unwritten"):
        run(body)


@pytest.mark.parametrize("body", ["out[i] = x[i + 1];", "out[i] = x[int(i) - 1];"], ids=["past", "before"])
def test_neither_end_of_a_buffer_is_left(run, body):
    with pytest.raises(MetalError, match="buffer 'x'"):
        run(body)
