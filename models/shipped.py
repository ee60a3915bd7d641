"""Weights that come with the repository, in models/weights/, and not with the wheel."""

from __future__ import annotations

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"


def shipped(name: str) -> Path | None:
    """The folder of that name in models/weights/, or None where this installation has none."""
    folder = WEIGHTS / name
    return folder if folder.is_dir() else None
