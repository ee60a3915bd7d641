"""A block of a stored prefix: a file with the rows of `BLOCK` tokens, named after all tokens up to its end.

It is a safetensors file with one tensor `LAYER.I` for each buffer of each slot, [1, kv_heads, BLOCK, width], as the
slot's storage holds it. A slot with an attention window may be missing, where its rows were gone when it was written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from russet.engine.array_file import open_checked, write_checked
from russet.models.safetensors_file import open_safetensors

BLOCK = 64
"""Tokens a block. Up to so many of a known prefix are computed again; a smaller one would mean more files."""

SUFFIX = ".safetensors"

DTYPES = {"F32": mx.float32, "F16": mx.float16, "BF16": mx.bfloat16, "I8": mx.int8}


def block_names(namespace: str, tokens: Sequence[int]) -> list[str]:
    """File names of the whole blocks in `tokens`; each is a hash of the namespace and of every token to its end."""
    digest = hashlib.sha256(namespace.encode())
    names = []
    for end in range(BLOCK, len(tokens) + 1, BLOCK):
        digest.update(np.asarray(tokens[end - BLOCK : end], dtype="<u4").tobytes())
        names.append(digest.hexdigest()[:40] + SUFFIX)
    return names


def write_block(path: Path, arrays: dict[str, mx.array]) -> None:
    """Write a block, atomically; raises StorageError."""
    write_checked(path, arrays)


class StoredRows(NamedTuple):
    """Rows of one buffer: bytes [kv_heads, BLOCK, width in bytes], mapped from the file, and what they are."""

    data: np.ndarray
    dtype: mx.Dtype


def layers_of(path: Path) -> set[int]:
    """The layers whose rows a block holds, by its header alone; raises CheckpointError for one that is damaged."""
    return {int(name.partition(".")[0]) for name in open_safetensors(path).tensors}


def read_block(path: Path) -> dict[int, list[StoredRows]]:
    """The verified rows of a block: by layer, every buffer of its slot.

    Raises CheckpointError if the file does not hold what was written.
    """
    file = open_checked(path)
    block: dict[int, list[StoredRows]] = {}
    for layer, i in sorted(tuple(map(int, name.split("."))) for name in file.tensors):
        name = f"{layer}.{i}"
        info = file.tensors[name]
        rows = StoredRows(file.raw(name).reshape(*info.shape[1:3], -1), DTYPES[info.dtype])
        block.setdefault(layer, []).append(rows)
    return block
