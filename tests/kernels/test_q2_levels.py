"""The bit patterns that decode weights, in the layouts of float16 and of CUDA's bfloat16."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from metalsim import COMPILER, metal_kernel

from russet.kernels.backend import text

SIZE = 64
SOURCE = "uint i = thread_position_in_grid.x;\n" + "\n".join(
    f"""{{
      weight_pair<half> pair = q2_levels<half, {j}>(w[i]);
      out[16 * i + {j}] = float(pair.v.x);
      out[16 * i + {j + 8}] = float(pair.v.y);
    }}"""
    for j in range(8)
)
# What CUDA computes with bfloat16: the same bits under 7 of mantissa. Sums and products of these are exact in float32.
BFLOAT = (
    ("bits = 10, bias = 15", "bits = 7, bias = 127"),
    (
        "metal::fma(a.x, b.x, c.x)",
        "half(as_type<float>(pair << 16) * as_type<float>(scale << 16) + as_type<float>(offset << 16))",
    ),
    (
        "metal::fma(a.y, b.y, c.y)",
        "half(as_type<float>(pair & 0xffff0000u) * as_type<float>(scale & 0xffff0000u)"
        " + as_type<float>(offset & 0xffff0000u))",
    ),
)


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler: install g++ or clang++")
@pytest.mark.parametrize("replaced", [(), BFLOAT], ids=["float16", "bfloat16"])
def test_every_weight_becomes_its_level(replaced):
    prelude = text("prelude_metal.h") + text("matrices_metal.h")
    for old, new in replaced:
        assert old in prelude
        prelude = prelude.replace(old, new)
    w = np.random.default_rng(0).integers(0, 1 << 32, SIZE, np.uint32)
    kernel = metal_kernel("levels", ("w",), ("out",), SOURCE, prelude + text("q2.h"))
    (out,) = kernel(
        inputs=[mx.array(w)],
        output_shapes=[(SIZE, 16)],
        output_dtypes=[mx.float32],
        grid=(SIZE, 1, 1),
        threadgroup=(SIZE, 1, 1),
    )
    assert np.array_equal(np.array(out), (w[:, None] >> (2 * np.arange(16, dtype=np.uint32)) & 3) - 1.5)


def test_cuda_writes_into_the_mantissa_that_the_test_above_takes():
    assert "struct mantissa<__nv_bfloat16> { enum { bits = 7, bias = 127 }; };" in text("matrices_cuda.h")
