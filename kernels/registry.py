"""Every kernel that Russet has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from russet.kernels.base import Kernel

if TYPE_CHECKING:
    from russet.kernels.sheet import Form

_K = 384
SIMULATED = frozenset(
    (
        "attend_decode.metal",
        "attend_shared.metal",
        "embed_row.metal",
        "importance_rows.metal",
        "importance_stats.metal",
        "merge_matvec.metal",
        "norm_matvec.metal",
        "q2_lanes.metal",
        "q2_tiles.metal",
        "residual_matvec.metal",
        "sigmoid_decode.metal",
        "sigmoid_prefill.metal",
        "sparse_down.metal",
        "sparse_gate_up.metal",
        "sparse_gate_vector.metal",
    )
)
"""Bodies whose Metal text tests/kernels/test_simulated.py runs on a CPU."""


def kernels() -> tuple[Kernel, ...]:
    """Operations that are made to measure, such as the matrix-vector kernels, in one form each."""
    import mlx.core as mx

    from russet.kernels.packed import Format
    from russet.kernels.sheet import Form

    plain, normed, twice = (Form(_K, Format(4, 64, False), mx.float16, gains=gains) for gains in range(3))
    return (*_to_measure(plain, normed, twice), *_of_any_form())


def every_form() -> tuple[Kernel, ...]:
    """The same with those that are made to measure in every packing; kernels of one name are one operation."""
    from russet.kernels.sheet import example_forms

    forms = zip(*(example_forms(_K, gains) for gains in range(3)), strict=True)
    return (*(kernel for one in forms for kernel in _to_measure(*one)), *_of_any_form())


def _to_measure(plain: Form, normed: Form, twice: Form) -> tuple[Kernel, ...]:
    """The kernels of one packing, for sheets without a norm's gain, with one and with two."""
    from russet.kernels.embed_row import embed_row
    from russet.kernels.norm_matvec import norm_matvec
    from russet.kernels.residual_matvec import merge_matvec, residual_matvec

    return (
        embed_row(plain, 1.0),
        norm_matvec(normed, 1e-5),
        norm_matvec(normed, 1e-5, "silu"),
        norm_matvec(twice, 1e-5),
        norm_matvec(twice, 1e-5, "gelu_tanh"),
        merge_matvec(plain, True, 6),
        residual_matvec(plain, True),
    )


def _of_any_form() -> tuple[Kernel, ...]:
    from russet.kernels.attend_decode import ATTEND_DECODE, ATTEND_SHARED
    from russet.kernels.q2_matvec import LANES, TILES
    from russet.kernels.row_importance import ROWS, STATS
    from russet.kernels.sigmoid_attention import DECODE, PREFILL
    from russet.kernels.sparse_ffn import DOWN, gate_up, gate_up_vector

    return (
        LANES,
        TILES,
        PREFILL,
        DECODE,
        ATTEND_DECODE,
        ATTEND_SHARED,
        STATS,
        ROWS,
        gate_up("relu"),
        gate_up("silu"),
        gate_up_vector("relu"),
        gate_up_vector("silu"),
        DOWN,
    )
