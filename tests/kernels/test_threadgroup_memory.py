"""No kernel takes more than the 32 KB of threadgroup memory that Metal has, at the widths of well-known models."""

from __future__ import annotations

from collections.abc import Iterator

import mlx.core as mx
import pytest
from kernel_runs import first_threadgroup
from metalsim import COMPILER
from msl_to_cpp import MetalError

from russet.kernels import attend_decode, norm_matvec, q2_matvec, residual_matvec, row_importance, sigmoid_attention
from russet.kernels.attend_reference import plan, random_parts
from russet.kernels.base import Inputs, Kernel
from russet.kernels.packed import Format
from russet.kernels.residual_matvec import MAX_MERGED
from russet.kernels.sheet import Form
from russet.kernels.sparse_ffn import DOWN, gate_up, random_down, random_gate_up

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler: install g++ or clang++")

F16, F32 = mx.float16, mx.float32
WIDE, HALF, FOUR, TWO = Format(32, 0, False), Format(16, 0, False), Format(4, 64, False), Format(2, 64, True)
Case = tuple[str, Kernel, Inputs]


def dtype_of(kind: Format) -> mx.Dtype:
    return F32 if kind == WIDE else F16


def merged(heads: int, kv_heads: int, dim: int, kind: Format) -> Case:
    form = Form(heads * dim, kind, dtype_of(kind))
    splits = plan("metal", heads, mx.zeros((1, kv_heads, 1 << 14, dim), dtype=F16)).splits
    inputs = [random_parts(splits, heads, dim), *residual_matvec.random_inputs(form, 8)[1:]]
    return f"merge {heads}/{kv_heads} {dim} {kind.bits}", residual_matvec.merge_matvec(form, True, heads), inputs


def matvecs() -> Iterator[Case]:
    """The heads of Llama-2-13B with as many, fewer and one for keys, Gemma's of 256 features; wide FFNs."""
    for heads, kv_heads, dim in ((40, 40, 128), (40, 8, 128), (40, 1, 128), (20, 4, 256)):
        yield merged(heads, kv_heads, dim, WIDE)
    yield merged(40, 8, 128, HALF)
    yield merged(40, 8, 128, FOUR)
    for kind in (WIDE, HALF, TWO):
        form = Form(5120, kind, dtype_of(kind), gains=2)
        yield f"norm {kind.bits}", norm_matvec.norm_matvec(form, 1e-5, "silu"), norm_matvec.random_inputs(form, 40)
        form = Form(14336, kind, dtype_of(kind))
        yield (
            f"residual {kind.bits}",
            residual_matvec.residual_matvec(form, True),
            residual_matvec.random_inputs(form, 8),
        )
    for rows, group in ((16, 0), (16, 64)):
        for dtype in (F16, F32):
            inputs = q2_matvec.random_inputs(rows, 40, 4096, group, dtype, dtype)
            yield f"q2 tiles {rows} {group} {dtype}", q2_matvec.TILES, inputs


def sparse() -> Iterator[Case]:
    """Up to the FFN of Llama-3.1-70B."""
    for rows, neurons, kind in ((0, 11008, FOUR), (0, 28672, WIDE), (0, 28672, HALF), (16, 14336, WIDE)):
        inputs = random_down(rows, neurons, 64, kind, F32, dtype_of(kind))
        yield f"down {rows} {neurons} {kind.bits}", DOWN, inputs
    inputs = random_gate_up(16, 4096, 40, WIDE, F32, F32, norm=True)
    yield "gate/up", gate_up("relu"), inputs


def attention() -> Iterator[Case]:
    """Of Llama-3-8B, Gemma and SmolLM2-135M."""
    for heads, kv_heads, dim, dtype in ((32, 8, 128, F16), (8, 4, 256, F16), (4, 1, 256, F32), (9, 3, 64, F16)):
        shape = attend_decode.Shape(heads, kv_heads, dim, 512, 507, 5)
        inputs = attend_decode.random_inputs(shape, dtype, True)
        yield f"attend {heads}/{kv_heads} {dim} {dtype}", attend_decode.ATTEND_DECODE, inputs
    yield "importance", row_importance.STATS, row_importance.random_inputs(8, 2, 530, 256, F32, F32)
    for dtype in (F16, F32):
        inputs = sigmoid_attention.random_inputs(2, 1, 70, 90, 128, dtype)
        yield f"sigmoid prefill {dtype}", sigmoid_attention.PREFILL, inputs
        inputs = sigmoid_attention.random_inputs(4, 1, 1, 300, 256, dtype)
        yield f"sigmoid decode {dtype}", sigmoid_attention.DECODE, inputs


@pytest.mark.parametrize("group", [matvecs, sparse, attention])
def test_no_threadgroup_takes_more_than_there_is(group):
    over = []
    for name, kernel, inputs in group():
        try:
            first_threadgroup(kernel, inputs)
        except MetalError as error:
            over.append(f"{name}: {error}")
    assert over == []


def test_too_much_is_found():
    _, kernel, inputs = merged(2 * MAX_MERGED // 128, 8, 128, HALF)
    with pytest.raises(MetalError, match="threadgroup memory"):
        first_threadgroup(kernel, inputs)
