"""Every kernel that Russet has."""

from __future__ import annotations

from .base import Kernel


def kernels() -> tuple[Kernel, ...]:
    from .q2_matvec import LANES, TILES

    return (LANES, TILES)
