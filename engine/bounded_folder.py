"""A folder of cached files that stays within a size: what was used longest ago goes first."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

LEFTOVER_NS = 600 * 10**9
"""A hidden file this old is what a process that died was writing."""


def touch(paths: Iterable[Path]) -> None:
    """Mark files as used just now, in the order in which they are to be kept; one that is gone is left alone."""
    now = time.time_ns()
    for i, path in enumerate(paths):
        with suppress(OSError):
            os.utime(path, ns=(now - i * 1000, now - i * 1000))


def evict(folder: Path, suffix: str, limit: int) -> None:
    """Remove what dead processes left, then what was used longest ago until the rest takes `limit` bytes at most."""
    files: list[tuple[int, int, Path]] = []
    for path in folder.glob(f"*{suffix}"):
        with suppress(OSError):
            status = path.stat()
            files.append((status.st_mtime_ns, status.st_size, path))
    now = time.time_ns()
    total = sum(size for _, size, path in files if not path.name.startswith("."))
    for used, size, path in sorted(files):
        hidden = path.name.startswith(".")
        if used < now - LEFTOVER_NS if hidden else total > limit:
            total -= 0 if hidden else size
            with suppress(OSError):
                path.unlink()
