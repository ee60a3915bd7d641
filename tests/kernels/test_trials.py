"""What the doctor times: both sides of a trial do the same work, and every kernel has one."""

from __future__ import annotations

import mlx.core as mx
import pytest

from russet.kernels.base import relative_error
from russet.kernels.registry import kernels
from russet.kernels.trials import Size, trials

SMALL = trials(Size(hidden=256, neurons=384, heads=4, kv_heads=2, rows=70))
# Softmax in the place of a sigmoid, or other queries and other statistics: only the size is alike.
OTHER = {"sigmoid_prefill", "sigmoid_decode", "attend_decode", "attend_shared", "importance_stats"}


def test_every_kernel_has_a_trial():
    assert set(SMALL) == {kernel.name for kernel in kernels()}


@pytest.mark.parametrize("name", SMALL)
def test_mlx_does_the_same_work(name):
    trial = SMALL[name]()
    assert trial.kernel.name == name
    found, expected = trial.stock(), trial.kernel.reference(*trial.inputs)[0]
    if name in OTHER:
        assert mx.isfinite(found).all()
    else:
        # MLX's weights for sparse_down are packed anew, along the other axis.
        assert relative_error(found.reshape(expected.shape), expected) < (1e-1 if name == "sparse_down" else 2e-2)
