"""What tells one model from another, in milliseconds: its configuration, tensor headers, and samples of the weights."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from russet.models.runtimes import package_suffix
from russet.models.safetensors_file import TensorInfo, open_safetensors
from russet.models.shards import shards

SAMPLE_BYTES = 64
PACKAGE_SAMPLES = 1024


def fingerprint(folder: Path) -> str:
    """A hash over config.json, and every tensor's name, format, shape, and first, middle and last 64 bytes.

    All tensors are sampled, since a fine-tuned model may share any of them with the one it comes from. Of a package,
    whose tensors other programs read, `PACKAGE_SAMPLES` places of every file are.
    """
    if package_suffix(folder):
        return _of_package(folder)
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for shard in shards(folder):
        tensors = open_safetensors(shard).tensors
        with shard.open("rb") as file:
            for name, info in sorted(tensors.items()):
                digest.update(json.dumps([name, info.dtype, info.shape]).encode())
                for offset in _samples(info):
                    file.seek(offset)
                    digest.update(file.read(min(SAMPLE_BYTES, info.offset + info.nbytes - offset)))
    return digest.hexdigest()


def _of_package(path: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(file for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file()):
        size = file.stat().st_size
        digest.update(json.dumps([file.relative_to(path).as_posix(), size]).encode())
        with file.open("rb") as content:
            for k in range(PACKAGE_SAMPLES):
                content.seek(max(0, size - SAMPLE_BYTES) * k // (PACKAGE_SAMPLES - 1))
                digest.update(content.read(SAMPLE_BYTES))
    return digest.hexdigest()


def _samples(info: TensorInfo) -> tuple[int, int, int]:
    last = max(0, info.nbytes - SAMPLE_BYTES)
    return info.offset, info.offset + last // 2, info.offset + last
