"""Run one of Russet's kernels on the simulator, as Metal would."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from metalsim import ORDERS, metal_kernel

from russet.kernels.backend import Backend, body, header
from russet.kernels.base import Inputs, Kernel


def simulate(kernel: Kernel, inputs: Inputs, target: Backend = "metal", **options: Any) -> list[mx.array]:
    """The outputs of the Metal text, cut as for `target`; `options` are those of metalsim's call."""
    launch = kernel.launch(target, *inputs)
    source, preamble = body(kernel.body, kernel.inputs, "metal"), header(kernel.headers, "metal")
    run = metal_kernel(kernel.name, kernel.inputs, kernel.outputs, source, preamble, not kernel.strided)
    call = {
        "inputs": inputs,
        "grid": launch.grid,
        "threadgroup": launch.threadgroup,
        "template": launch.template,
        "output_shapes": launch.output_shapes,
        "output_dtypes": launch.output_dtypes,
    }
    return run(**(call | options))


def first_threadgroup(kernel: Kernel, inputs: Inputs) -> None:
    """Run one threadgroup: enough to see that its memory is not too large."""
    simulate(kernel, inputs, grid=kernel.launch("metal", *inputs).threadgroup)


def simulate_all_orders(kernel: Kernel, inputs: Inputs, target: Backend = "metal") -> list[mx.array]:
    """The outputs, which have to be the same bits in every order of threads and over any earlier contents."""
    runs = [
        simulate(kernel, inputs, target, order=order, fill=fill, guard_start=order == "reverse")
        for order, fill in zip(ORDERS, (0xFF, 0x00, 0x5A), strict=True)
    ]
    for others in runs[1:]:
        for first, other in zip(runs[0], others, strict=True):
            same = mx.array_equal(first.view(mx.uint8), other.view(mx.uint8)).item()
            assert same, f"{kernel.name}: its result follows the order of threads, or it leaves elements unwritten"
    return runs[0]
