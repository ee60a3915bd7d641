from __future__ import annotations

import pytest
from msl_lint import lint_body, lint_declarations, lint_header


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("float4 v = float4(1, 2, 3, 4);", "vector constructor"),
        ("uint2 v = uint2(1, 2);", "vector constructor"),
        ("float2 v = u.xy;", "swizzle"),
        ("double d = 0;", "64-bit float"),
        ("threadgroup float* p = shared;", "TG"),
        ("simdgroup_matrix<float, 8, 8> m;", "tiles of the preludes"),
        ("__syncthreads();", "CUDA only"),
        ("float y = __shfl_xor_sync(~0u, x, 1);", "CUDA only"),
        ("uint i = threadIdx.x;", "CUDA only"),
        ("for (float x : list) y += x;", "range for"),
        ("atomic_fetch_add_explicit(p, 1, memory_order_relaxed);", "order of threads"),
        ("out[0] = bfloat16_t(1.0f);", "T.float."),
    ],
)
def test_what_one_compiler_refuses_is_found(source, problem):
    assert problem.replace("T.float.", "T(float)") in " ".join(lint_body(source))
    assert lint_body(f"// {source}") == []


def test_headers_keep_to_the_same_subset():
    assert "64-bit float" in lint_header("inline double f() { return 0; }")[0]
    assert lint_header("inline float f(float x) { for (uint i = 0; i < 4; i++) x += 1; return x; }") == []


def test_headers_name_no_attributes_and_every_address_space():
    assert "does not see" in lint_header("inline uint f() { return thread_index_in_simdgroup; }")[0]
    assert "without an address space" in lint_declarations("inline float f(const float* p) { return p[0]; }")[0]
    assert lint_declarations("inline float f(const device float* p, TG(float) q, uint n) { return p[0]; }") == []
    assert "constant address space" in lint_declarations("const float table[2] = {1, 2};")[0]
    assert lint_declarations("struct s { float x; };\ninline void f() { float y = 0; }") == []
