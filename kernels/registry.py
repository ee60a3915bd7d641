"""Every kernel that Russet has."""

from __future__ import annotations

from russet.kernels.base import Kernel

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

    from russet.kernels.attend_decode import ATTEND_DECODE, ATTEND_SHARED
    from russet.kernels.embed_row import embed_row
    from russet.kernels.norm_matvec import norm_matvec
    from russet.kernels.packed import Format
    from russet.kernels.q2_matvec import LANES, TILES
    from russet.kernels.residual_matvec import merge_matvec, residual_matvec
    from russet.kernels.row_importance import ROWS, STATS
    from russet.kernels.sheet import Form
    from russet.kernels.sigmoid_attention import DECODE, PREFILL
    from russet.kernels.sparse_ffn import DOWN, gate_up, gate_up_vector

    def form(k: int, gains: int) -> Form:
        return Form(k, Format(4, 64, False), mx.float16, gains=gains)

    return (
        embed_row(form(384, 0), 1.0),
        norm_matvec(form(384, 1), 1e-5),
        norm_matvec(form(384, 1), 1e-5, "silu"),
        norm_matvec(form(384, 2), 1e-5),
        norm_matvec(form(384, 2), 1e-5, "gelu_tanh"),
        merge_matvec(form(384, 0), True, 6),
        residual_matvec(form(384, 0), True),
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
