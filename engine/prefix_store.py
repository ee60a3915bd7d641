"""Prefix caches: KV rows of exact prefixes on disk, looked up by content.

A prefix is kept in blocks of `BLOCK` tokens (prefix_block.py), so prompts that begin alike share files. Nothing else
ties the files together: a block that is missing or damaged ends the prefix before it, and any file may be deleted at
any time. Each is written under another name and renamed, so several processes can use one folder.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import russet
from russet.engine.bounded_folder import evict, touch
from russet.engine.cache import KVCache
from russet.engine.device import on_gpu
from russet.engine.errors import CheckpointError, InvalidOptionError, StorageError
from russet.engine.paths import prefixes_dir
from russet.engine.prefix_block import BLOCK, SUFFIX, block_names, layers_of, read_block, write_block
from russet.engine.prefix_rows import CacheFiller, HeldRows, usable_blocks
from russet.engine.storage import make_folder
from russet.models.fingerprint import fingerprint

_logger = logging.getLogger("russet")

FORMAT = "russet-prefix-1"
DEFAULT_LIMIT = 4_000_000_000
MIN_TOKENS = 256
"""Prompts shorter than this are neither looked up nor stored."""


def size_limit() -> int:
    """Bytes that a folder of prefix caches may take; raises InvalidOptionError for a setting that is no number."""
    text = os.environ.get("RUSSET_PREFIX_CACHE_BYTES", "")
    if text and not text.isdecimal():
        raise InvalidOptionError(f"RUSSET_PREFIX_CACHE_BYTES is {text!r}; it must be a whole number of bytes.")
    return int(text) if text else DEFAULT_LIMIT


def open_store(where: str | Path | bool | None, model: Path, decoder: Any, kv_bits: int) -> PrefixStore | None:
    """The store that `russet.load(prefix_cache=...)` asks for: none, the one in the cache folder, or one elsewhere.

    Rows are kept apart by weights, number format and kind of device, and by the versions of Russet and MLX, since any
    of them may change a row. A model that another program runs has no store, and a note says so.
    """
    if where is None or where is False:
        return None
    limit = size_limit()
    if not isinstance(decoder.new_cache(kv_bits), KVCache):
        _logger.warning("Prefix caches need one of Russet's own architectures in MLX; %s runs without.", model.name)
        return None
    device = "gpu" if on_gpu() else "cpu"
    versions = (russet.__version__, version("mlx"))
    namespace = json.dumps([FORMAT, fingerprint(model), str(decoder.dtype), kv_bits, BLOCK, device, *versions])
    return PrefixStore(prefixes_dir() if where is True else Path(where).expanduser(), namespace, limit)


class PrefixStore:
    """Exact prefixes of one model in `folder`, which other models share and which holds at most `limit` bytes."""

    def __init__(self, folder: Path, namespace: str, limit: int) -> None:
        self.folder = folder
        self.namespace = namespace
        self.limit = limit
        self._writable = True
        self._warned = False

    def fill(self, cache: KVCache, tokens: Sequence[int], room: int) -> None:
        """Put the longest stored prefix of `tokens` into an empty cache, with capacity for `room` rows.

        At least the last token is left to compute. Nothing happens where nothing is stored.
        """
        if len(tokens) < MIN_TOKENS:
            return
        paths = self._paths(tokens[:-1])
        held: list[set[int]] = []
        for path in paths:
            layers = self._layers(path)
            if layers is None:
                break
            held.append(layers)
        while count := usable_blocks(cache, held):
            filler = CacheFiller(cache, count, room)
            intact = self._read(paths[:count], filler)
            if intact == count:
                filler.finish()
                touch(paths[:count])
                return
            held = held[:intact]

    def hold(self, cache: Any, tokens: Sequence[int]) -> HeldPrefix | None:
        """What is to be stored of a prompt whose exact prefill is through; None where it is short or writing failed.

        Taken before decoding, which may drop rows of slots with an attention window.
        """
        if not isinstance(cache, KVCache) or len(tokens) < MIN_TOKENS or not self._writable:
            return None
        fitting = tokens[: self.limit // max(1, cache.bytes_per_position)]
        return HeldPrefix(self, self._paths(fitting), HeldRows(cache))

    def write(self, paths: list[Path], rows: HeldRows) -> None:
        """Store the blocks that are not there yet, and evict what was used longest ago if that exceeds the limit.

        A disk that refuses makes one warning, and nothing is stored from then on.
        """
        if not rows.in_order():
            return
        try:
            make_folder(self.folder)
            missing = [k for k, path in enumerate(paths) if not rows.layers(k) <= (self._layers(path) or set())]
            for k in missing:
                write_block(paths[k], rows.block(k))
        except StorageError as error:
            self._writable = False
            _logger.warning("Prefixes are not stored any more: %s", error)
            missing = []
        touch(paths)
        if missing:
            evict(self.folder, SUFFIX, self.limit)

    def _paths(self, tokens: Sequence[int]) -> list[Path]:
        return [self.folder / name for name in block_names(self.namespace, tokens)]

    def _layers(self, path: Path) -> set[int] | None:
        """The layers of a block, or None where there is no sound one."""
        try:
            return layers_of(path) if path.exists() else None
        except CheckpointError as error:
            self._discard(path, error)
            return None

    def _read(self, paths: list[Path], filler: CacheFiller) -> int:
        """Copy blocks up to the first that is damaged; how many were sound."""
        for k, path in enumerate(paths):
            try:
                filler.add(k, read_block(path))
            except (CheckpointError, OSError) as error:
                self._discard(path, error)
                return k
        return len(paths)

    def _discard(self, path: Path, error: Exception) -> None:
        if path.exists() and not self._warned:  # otherwise another process evicted it just now
            self._warned = True
            _logger.warning("prefix cache %s is damaged, so it is removed and its tokens are computed anew", path.stem)
            _logger.debug("%s: %s", path, error)
        with suppress(OSError):
            path.unlink()


@dataclass(frozen=True)
class HeldPrefix:
    """A prefix that waits for its reply to end before it is written."""

    store: PrefixStore
    paths: list[Path]
    rows: HeldRows

    def write(self) -> None:
        self.store.write(self.paths, self.rows)
