"""Private files of arrays: safetensors that only the user can read, there whole or not at all."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import mlx.core as mx

from russet.engine.storage import writing


def write_arrays(path: Path, arrays: dict[str, mx.array], metadata: dict[str, str]) -> None:
    """Write `path` through a temporary file beside it, `.NAME.RANDOM.safetensors`; raises `StorageError`."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.safetensors")
    try:
        with writing(path):
            # What a user talks about with a model is nobody else's business.
            with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                mx.save_safetensors(file, {name: mx.contiguous(a) for name, a in arrays.items()}, metadata)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
