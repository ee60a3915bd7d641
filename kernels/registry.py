"""Every kernel that Russet has."""

from __future__ import annotations

from russet.kernels.base import Kernel


def kernels() -> tuple[Kernel, ...]:
    from russet.kernels.attend_decode import ATTEND_DECODE, ATTEND_SHARED
    from russet.kernels.q2_matvec import LANES, TILES
    from russet.kernels.row_importance import ROWS, STATS
    from russet.kernels.sigmoid_attention import DECODE, PREFILL
    from russet.kernels.sparse_ffn import DOWN, gate_up

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
        DOWN,
    )
