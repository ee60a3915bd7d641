"""A saved conversation: one safetensors file with the messages, the tokens and the rows of the KV cache."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np

from russet.engine.array_file import write_arrays
from russet.engine.cache import KVCache
from russet.engine.errors import CheckpointError, SessionFileError, StorageError
from russet.models.fingerprint import fingerprint
from russet.models.safetensors_file import open_safetensors

if TYPE_CHECKING:
    from russet.engine.session import Session

FORMAT = "russet-session-1"


def save(session: Session, path: Path) -> None:
    """Write `session` to `path` through a temporary file beside it; raises `StorageError`."""
    if path.is_dir():
        raise StorageError(f"{path} is a folder; give the name of a file.")
    if not path.parent.is_dir():
        raise StorageError(f"There is no folder {path.parent} for {path.name}; make it, or choose another place.")
    cache = session.cache
    arrays: dict[str, mx.array] = {"tokens": mx.array(session.cached, dtype=mx.int32)}
    first: dict[str, int] = {}
    # Rows of a model that another program runs are not stored: loading computes them again.
    if isinstance(cache, KVCache) and session.cached:
        for layer, slot in cache.slots.items():
            first[str(layer)] = slot.first
            # Of a reply that is still being made, rows beyond `cached` may be approximate.
            kept = slot.kept_at(len(session.cached))
            arrays.update({f"{layer}.{i}": rows[:, :, :kept] for i, rows in enumerate(slot.rows.stored())})
    metadata = {
        "format": FORMAT,
        "model": fingerprint(session.model.path),
        "messages": json.dumps(session.messages),
        "kv_bits": str(session.model.kv_bits),
        "first": json.dumps(first),
    }
    write_arrays(path, arrays, metadata)


def restore(session: Session, path: Path) -> None:
    """Fill a new session from `path`; `SessionFileError` if it is damaged, missing, or was saved with another model."""
    model = session.model
    arrays, metadata = _read(path)
    if metadata.get("format") != FORMAT:
        raise SessionFileError(f"{path} is not a conversation that Russet saved.")
    if metadata["model"] != fingerprint(model.path):
        raise SessionFileError(
            f"{path} was saved with another model than {model.name}; start Russet with that model to go on."
        )
    session.messages = json.loads(metadata["messages"])
    if metadata["kv_bits"] == str(model.kv_bits):
        _fill_cache(session, arrays, json.loads(metadata["first"]))


def _read(path: Path) -> tuple[dict[str, mx.array], dict[str, str]]:
    if not path.is_file():
        raise SessionFileError(f"There is no saved conversation {path}.")
    try:
        metadata = open_safetensors(path).metadata
        with path.open("rb") as file:
            arrays = mx.load(file, format="safetensors")
    except CheckpointError:
        raise SessionFileError(f"{path} is damaged, or not a conversation that Russet saved.") from None
    except OSError as error:
        raise SessionFileError(f"{path} cannot be read ({error.strerror or error}).") from None
    assert isinstance(arrays, dict)
    return arrays, metadata


def _fill_cache(session: Session, arrays: dict[str, mx.array], first: dict[str, int]) -> None:
    cache = session.cache
    if not first or not isinstance(cache, KVCache):
        return
    tokens = [int(token) for token in np.array(arrays["tokens"])]
    for layer, slot in cache.slots.items():
        slot.rows.load([arrays[f"{layer}.{i}"] for i in range(sum(n.startswith(f"{layer}.") for n in arrays))])
        slot.restore(first[str(layer)])
    cache.next_position = len(tokens)
    session.cached = tokens
