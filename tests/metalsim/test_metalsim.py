"""The simulator finds what it is there to find."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import pytest
from metalsim import COMPILER, ORDERS, metal_kernel
from msl_signature import metal_source
from msl_to_cpp import MetalError

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler: install g++ or clang++")


def run(source: str, inputs: dict[str, mx.array], threads: int = 64, group: int = 64, **options) -> mx.array:
    kernel = metal_kernel("probe", tuple(inputs), ("out",), source)
    shape = {"output_shapes": [(threads,)], "output_dtypes": [mx.float32]}
    return kernel(
        inputs=list(inputs.values()), grid=(threads, 1, 1), threadgroup=(group, 1, 1), **{**shape, **options}
    )[0]


REVERSED = """
    threadgroup float shared[64];
    uint i = thread_index_in_threadgroup;
    shared[i] = x[i];
    BARRIER
    out[thread_position_in_grid.x] = shared[63 - i];
"""


@needs_compiler
@pytest.mark.parametrize("order", ORDERS)
def test_threads_meet_at_a_barrier(order):
    x = mx.arange(64, dtype=mx.float32)
    source = REVERSED.replace("BARRIER", "threadgroup_barrier(mem_flags::mem_threadgroup);")
    assert mx.array_equal(run(source, {"x": x}, order=order), x[::-1])


@needs_compiler
def test_a_missing_barrier_changes_the_result():
    assert mx.isnan(run(REVERSED.replace("BARRIER", ""), {"x": mx.zeros((64,))})).any()


@needs_compiler
def test_simdgroups_do_not_run_in_lockstep():
    source = REVERSED.replace("BARRIER", "simdgroup_barrier(mem_flags::mem_threadgroup);")
    assert mx.isnan(run(source, {"x": mx.zeros((64,))}, order="reverse")).any()  # the other half is another simdgroup's


@needs_compiler
def test_the_reverse_order_finds_what_neighbours_hide():
    """Without a barrier a thread sees what the threads before it wrote, and only those."""
    source = """
        threadgroup float shared[32];
        uint i = thread_index_in_threadgroup;
        shared[i] = x[i];
        out[i] = i > 0 ? shared[i - 1] : 0.0f;
    """
    x = mx.arange(32, dtype=mx.float32)
    forward, reverse = (run(source, {"x": x}, 32, 32, order=order) for order in ("forward", "reverse"))
    assert mx.array_equal(forward[1:], x[:-1])
    assert mx.isnan(reverse[1:]).all()


@needs_compiler
def test_a_random_order_finds_what_both_ends_hide():
    """The first and the last thread write the same, and one of them comes last in the other two orders."""
    source = """
        threadgroup float shared[1];
        uint i = thread_index_in_threadgroup;
        shared[0] = i == 0 || i == 31 ? 1.0f : 2.0f;
        simdgroup_barrier(mem_flags::mem_threadgroup);
        out[i] = shared[0];
    """
    assert [run(source, {}, 32, 32, order=order)[0].item() for order in ORDERS] == [1, 1, 2]


@needs_compiler
def test_threadgroups_run_in_either_order():
    source = "out[0] = float(threadgroup_position_in_grid.x);"
    assert [run(source, {}, 96, 32, order=order)[0].item() for order in ORDERS] == [2, 0, 2]


@needs_compiler
@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "out[thread_position_in_grid.x] = x[thread_position_in_grid.x + 1];",
            "buffer 'x' byte offset 256 .past its end",
        ),
        ("out[int(thread_position_in_grid.x) - 1] = 0;", "buffer 'out' byte offset -4 .before its start"),
        ("((device float*)x)[0] = 1;", "buffer 'x' byte offset 0 .write to a read-only input"),
        (
            "if (thread_index_in_simdgroup < 8) out[0] = simd_sum(1.0f);  else simdgroup_barrier(mem_flags::mem_none);",
            "divergent control flow",
        ),
        (
            "if (simdgroup_index_in_threadgroup == 0) threadgroup_barrier(mem_flags::mem_threadgroup);",
            "not reached by all",
        ),
        ("threadgroup float big[8193]; big[0] = 0; out[0] = big[0];", "over the 32768 byte limit"),
        (
            "float big[80000]; for (int i = 0; i < 80000; i++) big[i] = x[0] + i; out[0] = big[int(x[0])];",
            "stack overflow",
        ),
        ("out[0] = missing;", "does not compile"),
    ],
)
def test_a_fault_is_named(source, message):
    with pytest.raises(MetalError, match=message):
        run(source, {"x": mx.ones((64,))}, guard_start="before" in message)


@needs_compiler
def test_an_unwritten_output_keeps_its_fill():
    source = "if (thread_position_in_grid.x > 0) out[thread_position_in_grid.x] = 1;"
    assert mx.isnan(run(source, {})[0]).item()
    assert run(source, {}, fill=0)[0].item() == 0


@needs_compiler
def test_edge_groups_have_the_threads_that_are_left():
    source = "out[thread_position_in_grid.x] = simd_sum(1.0f) + 1000 * threads_per_threadgroup.x;"
    out = run(source, {}, threads=70)
    assert (out[0].item(), out[69].item()) == (64032, 6006)


@needs_compiler
def test_matrices_multiply():
    source = """
    simdgroup_matrix<float, 8, 8> p, q, r(0.0f);
    uint l = thread_index_in_simdgroup, row = ((l >> 2) & 4u) + ((l >> 1) & 3u);
    uint column = 2u * (((l >> 2) & 2u) + (l & 1u));
    for (uint i = 0; i < 2; i++) {
      p.thread_elements()[i] = a[row * 8 + column + i];
      q.thread_elements()[i] = b[row * 8 + column + i];
    }
    simdgroup_multiply_accumulate(r, p, q, r);
    for (uint i = 0; i < 2; i++) out[row * 8 + column + i] = r.thread_elements()[i];
    """
    a, b = mx.random.normal((2, 8, 8), key=mx.random.key(0))
    out = run(source, {"a": a, "b": b}, threads=32, group=32, output_shapes=[(8, 8)])
    assert mx.allclose(out, a @ b, atol=1e-5)


@needs_compiler
def test_bfloat16_rounds_to_nearest_even():
    x = mx.random.normal((64,), key=mx.random.key(1))
    out = run(
        "out[thread_position_in_grid.x] = T(x[thread_position_in_grid.x]);",
        {"x": x},
        template=[("T", mx.bfloat16)],
        output_dtypes=[mx.bfloat16],
    )
    assert mx.array_equal(out, x.astype(mx.bfloat16))


def test_the_signature_is_the_one_that_mlx_writes():
    source = "out[thread_position_in_grid.x] = x[0] + x_shape[0] + x_strides[0] + x_ndim + s + c[0] + simd_sum(1.0f);"
    inputs = [("x", mx.ones((3, 5), mx.bfloat16)), ("s", mx.array(2.0)), ("c", mx.ones((3,), mx.uint8))]
    template = [("T", mx.bfloat16), ("G", 64), ("B", True)]
    make: Callable[..., Any] = mx.fast.metal_kernel
    theirs = make("probe", [name for name, _ in inputs], ["out"], source, "// header\n")

    def call(*arrays):
        return theirs(
            inputs=list(arrays),
            output_shapes=[(3,)],
            output_dtypes=[mx.float16],
            grid=(1, 1, 1),
            threadgroup=(1, 1, 1),
            template=template,
            verbose=True,
        )

    with tempfile.TemporaryFile("w+b") as printed, tempfile.TemporaryDirectory() as folder:
        stdout = os.dup(1)
        os.dup2(printed.fileno(), 1)
        try:
            mx.export_function(f"{folder}/call.mlxfn", call, *(array for _, array in inputs))
        finally:
            os.dup2(stdout, 1)
            os.close(stdout)
        printed.seek(0)
        text = printed.read().decode()
    ours = metal_source("probe", "// header\n", source, inputs, [("out", mx.float16)], template)[2]
    assert ours.strip() == text.split("```\n", 1)[1].rsplit("\n```", 1)[0].strip()


@needs_compiler
@pytest.mark.parametrize(("contiguous", "stride"), [(True, 24), (False, 48)])
def test_a_slice_is_copied_or_comes_with_its_strides(contiguous, stride):
    part = mx.arange(96, dtype=mx.float32).reshape(2, 6, 8)[:, 1:4]
    mx.eval(part)
    source = "out[0] = x[0]; out[1] = x[uint(x_strides[0])]; out[2] = x_strides[0];"
    (out,) = metal_kernel("first", ("x",), ("out",), source, ensure_row_contiguous=contiguous)(
        inputs=[part], output_shapes=[(3,)], output_dtypes=[mx.float32], grid=(1, 1, 1), threadgroup=(1, 1, 1)
    )
    assert out.tolist() == [8, 56, stride]
