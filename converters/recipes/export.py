"""Write what a recipe made as a model folder: weights, config.json, tokenizer, and what documents the run."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx

from russet.converters.base import tokenizer_files
from russet.engine.errors import WeightsError
from russet.engine.storage import writing

WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Exported:
    """A model folder's content: config.json and tensors by stock name, as they are stored; `files` are extra ones."""

    config: dict[str, Any]
    tensors: dict[str, mx.array]
    files: dict[str, bytes] = field(default_factory=dict)


def write_model(folder: Path, exported: Exported, source: Path) -> None:
    """Fill an empty folder; the tokenizer's files come from `source`.

    Raises WeightsError for values that are not finite, StorageError for a disk that is full.
    """
    for name, array in exported.tensors.items():
        if mx.issubdtype(array.dtype, mx.floating) and not bool(mx.isfinite(array).all()):
            raise WeightsError(f"The tensor {name} has values that are not finite after training: the run diverged.")
    config = dict(exported.config)
    dtypes = {str(a.dtype).removeprefix("mlx.core.") for a in exported.tensors.values() if a.dtype != mx.uint32}
    if len(dtypes) == 1:
        config["dtype" if "dtype" in config else "torch_dtype"] = dtypes.pop()
    with writing(folder):
        contiguous = {name: mx.contiguous(array) for name, array in sorted(exported.tensors.items())}
        mx.save_safetensors(str(folder / WEIGHTS), contiguous, metadata={"format": "mlx"})
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        files = {name: f if isinstance(f, bytes) else f.read_bytes() for name, f in tokenizer_files(source).items()}
        for name, content in {**files, **exported.files}.items():
            (folder / name).write_bytes(content)
