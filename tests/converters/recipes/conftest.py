"""Tiny models and texts to fit on, all random."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from russet.converters.recipes.base import Batch, Exported
from russet.converters.recipes.source import Source, open_source


@pytest.fixture(scope="session")
def source(tiny_folder: Path) -> Source:
    return open_source(tiny_folder)


@pytest.fixture(scope="session")
def batches(source: Source) -> list[Batch]:
    ids = np.random.default_rng(0).integers(0, source.config.vocab_size, (2, 4, 25))
    return [Batch(mx.array(part[:, :-1]), mx.array(part[:, 1:])) for part in ids]


@pytest.fixture(scope="session")
def written() -> Callable[[Exported, Path], Path]:
    """Writes a model folder without a tokenizer."""

    def write(exported: Exported, folder: Path) -> Path:
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(exported.config))
        mx.save_safetensors(str(folder / "model.safetensors"), exported.tensors, metadata={"format": "mlx"})
        return folder

    return write
