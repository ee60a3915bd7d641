"""Every kernel that Russet has."""

from __future__ import annotations

from russet.kernels.base import Kernel


def kernels() -> tuple[Kernel, ...]:
    from russet.kernels.q2_matvec import LANES, TILES

    return (LANES, TILES)
