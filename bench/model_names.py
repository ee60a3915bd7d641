"""What a report calls the models of one benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def short_names(models: Sequence[str]) -> dict[str, str]:
    """Model -> what the report calls it: the last part of a path or repository, where that tells it from the others."""
    last = [Path(model).name for model in models]
    return {model: name if last.count(name) == 1 else model for model, name in zip(models, last, strict=True)}
