from __future__ import annotations

import mlx.core as mx
import pytest
from address_spaces import CLANG, address_space_errors
from msl_signature import metal_source

pytestmark = pytest.mark.skipif(CLANG is None, reason="no clang: install clang 16 or later")

HEADER = "inline float first(const device T* p) { return float(p[0]); }\n"


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("out[0] = T(first(x));", None),
        ("threadgroup float s[4]; s[0] = 0; out[0] = T(first(s));", "no matching function"),
        ("out[0] = first(x);", "no viable overloaded"),
        ("thread float* p = x; out[0] = T(p[0]);", "cannot initialize"),
    ],
    ids=["sound", "threadgroup for device", "float to bfloat", "device for thread"],
)
def test_what_metal_refuses_is_found(source, problem):
    inputs = [("x", mx.ones((16,)))]
    header = HEADER.replace("T*", "float*")
    made = metal_source("probe", header, source, inputs, [("out", mx.bfloat16)], [("T", mx.bfloat16)])
    errors = address_space_errors(made[2], made[0], made[1])
    assert errors == [] if problem is None else any(problem in error for error in errors)
