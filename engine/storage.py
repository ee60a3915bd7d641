"""Writing to disk: every way in which it fails becomes a StorageError of one sentence."""

from __future__ import annotations

import errno
import fcntl
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from russet.engine.errors import StorageError
from russet.engine.paths import cache_root

_logger = logging.getLogger("russet")

_FULL = (errno.ENOSPC, errno.EDQUOT)
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.EIO)
_RESERVE = 64 << 20  # left free for everybody else on the disk


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Run a block that writes at `path`; an OSError of it becomes a StorageError."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StorageError(
                f"The disk of {path} is full: free some space and try again, {_elsewhere(path)}."
            ) from error
        raise StorageError(
            f"{error.filename or path} cannot be written ({error.strerror or error}): mend that, {_elsewhere(path)}."
        ) from error


def _elsewhere(path: Path) -> str:
    if path.absolute().is_relative_to(cache_root()):
        return "or set RUSSET_CACHE to another folder"
    return "or choose another place"


def of_the_disk(error: BaseException) -> bool:
    """Whether an error that may also come from a network comes from the disk."""
    return isinstance(error, OSError) and error.errno in (*_FULL, *_REFUSED)


def make_folder(path: Path) -> Path:
    """Create `path` with its parents unless it exists, and return it; raises StorageError."""
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


def require_space(folder: Path, nbytes: int) -> None:
    """Raise StorageError unless `nbytes` fit on the disk of `folder`, which exists."""
    free = shutil.disk_usage(folder).free
    if free < nbytes + _RESERVE:
        raise StorageError(
            f"{folder} has {readable_bytes(free)} free but {readable_bytes(nbytes + _RESERVE)} are needed: "
            f"free some space, {_elsewhere(folder)}."
        )


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock file `path` while the block runs; waits for another process that holds it."""
    with writing(path):
        file = path.open("a")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _logger.warning("another process prepares the same model; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def readable_bytes(nbytes: float) -> str:
    """Return for instance '98.4 MB'; decimal units, as disks and networks are sold."""
    for unit in ("B", "kB", "MB"):
        if nbytes < 1000:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1000
    return f"{nbytes:.1f} GB"


def folder_bytes(folder: Path) -> int:
    """Return the size of the files under `folder`, not counting what links point to."""
    return sum(file.lstat().st_size for file in folder.rglob("*") if file.is_file() and not file.is_symlink())
