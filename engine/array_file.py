"""Private files of arrays: safetensors that only the user can read, there whole or not at all."""

from __future__ import annotations

import os
import secrets
import zlib
from collections.abc import Iterable
from pathlib import Path

import mlx.core as mx
import numpy as np

from russet.engine.errors import CheckpointError
from russet.engine.storage import writing
from russet.models.safetensors_file import SafetensorsFile, open_safetensors


def write_checked(path: Path, arrays: dict[str, mx.array], metadata: dict[str, str] | None = None) -> None:
    """`write_arrays` with a checksum in the metadata, for `open_checked`.

    It does not wait for the disk: what a power cut tears, the checksum tells.
    """
    arrays = {name: mx.contiguous(array) for name, array in arrays.items()}
    data = ((name, tuple(array.shape), np.asarray(array.view(mx.uint8)).data) for name, array in arrays.items())
    write_arrays(path, arrays, {**(metadata or {}), "crc32": _checksum(data)}, sync=False)


def open_checked(path: Path) -> SafetensorsFile:
    """A file of `write_checked`, mapped and verified; raises CheckpointError if it does not hold what was written."""
    file = open_safetensors(path)
    data = ((name, info.shape, file.raw(name).data) for name, info in file.tensors.items())
    if _checksum(data) != file.metadata.get("crc32"):
        raise CheckpointError(f"{path} does not hold what was written to it; the file is damaged.")
    return file


def _checksum(tensors: Iterable[tuple[str, tuple[int, ...], memoryview]]) -> str:
    """CRC-32 over names, shapes and bytes, whatever the order in which they come."""
    total = 0
    for name, shape, data in tensors:
        total ^= zlib.crc32(data, zlib.crc32(f"{name}{shape}".encode()))
    return f"{total:08x}"


def write_arrays(path: Path, arrays: dict[str, mx.array], metadata: dict[str, str], *, sync: bool = True) -> None:
    """Write `path` through a temporary file beside it, `.NAME.RANDOM.safetensors`; raises `StorageError`.

    With `sync` it is on the disk before it takes the old file's place.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.safetensors")
    try:
        with writing(path):
            # What a user talks about with a model is nobody else's business.
            with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                mx.save_safetensors(file, {name: mx.contiguous(a) for name, a in arrays.items()}, metadata)
                file.flush()
                if sync:
                    os.fsync(file.fileno())
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
