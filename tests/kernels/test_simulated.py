"""Every kernel that is called simulated is: its Metal text runs here, against its reference."""

from __future__ import annotations

import pytest
from kernel_runs import simulate_all_orders
from metalsim import COMPILER

from russet.kernels.base import relative_error
from russet.kernels.registry import SIMULATED, kernels

KERNELS = kernels()


def test_all_bodies_are_simulated():
    assert {kernel.body for kernel in KERNELS} == SIMULATED


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler: install g++ or clang++")
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_the_metal_text_computes_the_reference(kernel):
    inputs = next(kernel.examples("metal"))
    found, expected = simulate_all_orders(kernel, inputs), kernel.reference(*inputs)
    errors = [relative_error(a, b) for a, b in zip(found, expected, strict=True)]
    assert max(errors) <= kernel.tolerance[inputs[0].dtype]
