"""Write a planned model folder, one tensor in memory at a time, so that it is there whole or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from russet.converters.layout import Plan, Planned, Shard
from russet.converters.quantize import blocks
from russet.engine.errors import OutputExistsError
from russet.engine.storage import require_space, writing

if TYPE_CHECKING:
    import mlx.core as mx

    from russet.engine.progress import Progress


@contextmanager
def staged_folder(dst: Path, nbytes: int) -> Iterator[Path]:
    """A folder beside `dst` that takes its name when the block ends well, and vanishes when it does not.

    Raises OutputExistsError when `dst` exists, StorageError when there is no room for `nbytes` or no permission.
    """
    refuse_existing(dst)
    dst = dst.absolute()
    made = [parent for parent in dst.parents if not parent.exists()]
    folder = dst.parent / f".{dst.name}.{secrets.token_hex(4)}.partial"
    try:
        with writing(dst):
            dst.parent.mkdir(parents=True, exist_ok=True)
            require_space(dst.parent, nbytes)
            folder.mkdir()
        yield folder
        with writing(dst):
            _sync(folder)
            if os.path.lexists(dst):
                raise OutputExistsError(f"{dst} was made by something else meanwhile; it was left as it is.")
            folder.rename(dst)
            _sync(dst.parent)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        for parent in made:
            with suppress(OSError):
                parent.rmdir()
        raise


def refuse_existing(dst: Path) -> None:
    """Raises OutputExistsError when there is anything at `dst`, a dangling link included."""
    if os.path.lexists(dst):
        raise OutputExistsError(f"{dst} exists already; remove it or choose another destination.")


def write_folder(folder: Path, plan: Plan, progress: Progress) -> None:
    """Write every file of `plan` into `folder`; progress counts the bytes of weights.

    Raises WeightsError for values that cannot be stored, StorageError when the disk is full.
    """
    for name, content in plan.files.items():
        data = content if isinstance(content, bytes) else content.read_bytes()
        with writing(folder), (folder / name).open("wb") as file:
            file.write(data)
            _sync_file(file)
    for shard in plan.shards:
        _write_shard(folder, shard, progress)


def _write_shard(folder: Path, shard: Shard, progress: Progress) -> None:
    import mlx.core as mx

    with writing(folder), (folder / shard.name).open("wb") as file:
        file.write(shard.header)
        for tensor in shard.tensors:
            _write_tensor(file, tensor)
            mx.clear_cache()
            progress.advance(tensor.nbytes)
        _sync_file(file)


def _write_tensor(file: BinaryIO, tensor: Planned) -> None:
    positions = [part.offset for part in tensor.parts]
    for block in blocks(tensor.source, tensor.target):
        for i, array in enumerate(block):
            data = _bytes_of(array)
            file.seek(positions[i])
            file.write(data)
            positions[i] += len(data)


def _bytes_of(array: mx.array) -> memoryview:
    import mlx.core as mx
    import numpy as np

    plain = array.view(mx.uint16) if array.dtype == mx.bfloat16 else array
    return np.ascontiguousarray(plain).reshape(-1).view(np.uint8).data


def _sync_file(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Make the folder's entries durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
