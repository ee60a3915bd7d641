"""Every kernel that Russet has."""

from __future__ import annotations

from russet.kernels.base import Kernel


def kernels() -> tuple[Kernel, ...]:
    from russet.kernels.attend_decode import ATTEND_DECODE, ATTEND_SHARED
    from russet.kernels.q2_matvec import LANES, TILES
    from russet.kernels.row_importance import ROWS, STATS
    from russet.kernels.sigmoid_attention import DECODE, PREFILL

    return (LANES, TILES, PREFILL, DECODE, ATTEND_DECODE, ATTEND_SHARED, STATS, ROWS)
