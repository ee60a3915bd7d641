"""A checked reader of safetensors files: a header is believed only once every offset in it has been verified.

Format (https://huggingface.co/docs/safetensors): 8 bytes of little-endian header length, a JSON header, and
one block of data.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from russet.engine.errors import CheckpointError

if TYPE_CHECKING:
    import mlx.core as mx
    import numpy as np

MAX_HEADER_BYTES = 100_000_000
"""The limit of the reference implementation."""

ITEM_BYTES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "U16": 2,
    "I16": 2,
    "F16": 2,
    "BF16": 2,
    "U32": 4,
    "I32": 4,
    "F32": 4,
    "U64": 8,
    "I64": 8,
    "F64": 8,
}

_REFUSED = ("F8_", "F6_", "F4", "C64")


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor lies: `dtype` is the format's name ("BF16"), `offset` the byte in the file."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True)
class SafetensorsFile:
    """One opened file; nothing but the header has been read."""

    path: Path
    tensors: dict[str, TensorInfo]
    metadata: dict[str, str] = field(default_factory=dict)

    @cached_property
    def _bytes(self) -> np.ndarray:
        import numpy as np

        return np.memmap(self.path, dtype=np.uint8, mode="r")

    def raw(self, name: str) -> np.ndarray:
        """One tensor's bytes, uint8: mapped from the file, not copied."""
        info = self.tensors[name]
        return self._bytes[info.offset : info.offset + info.nbytes]

    def read(self, name: str) -> mx.array:
        """One tensor, in its stored dtype (float64 becomes float32), copied out of the file."""
        import mlx.core as mx
        import numpy as np

        info, raw = self.tensors[name], self.raw(name)
        if info.dtype == "BF16":
            return mx.array(raw.view(np.uint16).reshape(info.shape)).view(mx.bfloat16)
        kind = {"BOOL": "?", "F": "f", "U": "u", "I": "i"}["BOOL" if info.dtype == "BOOL" else info.dtype[0]]
        array = raw.view(np.dtype(kind if kind == "?" else f"<{kind}{ITEM_BYTES[info.dtype]}"))
        if info.dtype == "F64":
            array = array.astype(np.float32)
        return mx.array(array.reshape(info.shape))


def open_safetensors(path: str | Path) -> SafetensorsFile:
    """Read and verify the header of a safetensors file.

    Raises CheckpointError when the file is cut short, the header is too long or is not the JSON it should be,
    a dtype is unknown or not supported, or tensors overlap, leave holes, or do not fit their shapes.
    """
    path = Path(path)
    try:
        header, data_start, data_bytes = _read_header(path)
    except OSError as error:
        reason = error.strerror or error
        raise CheckpointError(f"{path} could not be read ({reason}); check that it is there.") from error
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{path.name}: __metadata__ is not a table of strings; the file is damaged.")
    tensors = {name: _tensor_info(path, name, entry, data_start) for name, entry in header.items()}
    _check_layout(path, tensors, data_start, data_bytes)
    return SafetensorsFile(path, tensors, metadata)


def _read_header(path: Path) -> tuple[dict[str, Any], int, int]:
    """The parsed header, the byte at which data starts, and the number of data bytes."""
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        if len(prefix) < 8:
            raise CheckpointError(f"{path.name} has {size} bytes, too few for a safetensors file; fetch it again.")
        length = int.from_bytes(prefix, "little")
        if length > MAX_HEADER_BYTES:
            raise CheckpointError(
                f"{path.name} announces a header of {length:,} bytes, over the limit of "
                f"{MAX_HEADER_BYTES:,}; it is damaged or is not a safetensors file."
            )
        if length > size - 8:
            raise CheckpointError(
                f"{path.name} announces a header of {length:,} bytes but only {size - 8:,} follow; the "
                "file is cut short, fetch it again."
            )
        text = file.read(length)
    try:
        header = json.loads(text, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"The header of {path.name} is not valid JSON ({error}); the file is damaged.") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"The header of {path.name} is not a JSON object; the file is damaged.")
    return header, 8 + length, size - 8 - length


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name appears twice")
    return table


def _tensor_info(path: Path, name: str, entry: Any, data_start: int) -> TensorInfo:
    """Validate one header entry by itself."""
    where = f"{path.name}: tensor {name!r}"
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or not all(type(n) is int and n >= 0 for n in [*shape, begin, end]):
            raise TypeError
    except (TypeError, KeyError, ValueError):
        raise CheckpointError(
            f"{where} has a malformed entry, not a dtype, a shape and data_offsets; the file is damaged."
        ) from None
    if dtype.startswith(_REFUSED):
        raise CheckpointError(
            f"{where} is stored as {dtype}, which Russet does not read; start from the 16-bit checkpoint."
        )
    if dtype not in ITEM_BYTES:
        raise CheckpointError(f"{where} has the unknown dtype {dtype!r}; known are {', '.join(ITEM_BYTES)}.")
    expected = prod(shape) * ITEM_BYTES[dtype]
    if end - begin != expected:
        raise CheckpointError(
            f"{where} has {end - begin} bytes, but shape {tuple(shape)} of {dtype} takes {expected}; "
            "the file is damaged."
        )
    return TensorInfo(dtype, tuple(shape), data_start + begin, expected)


def _check_layout(path: Path, tensors: dict[str, TensorInfo], data_start: int, data_bytes: int) -> None:
    """Tensors must tile the data block exactly, as the format demands."""
    position = data_start
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
        if info.offset != position:
            fault = "overlaps the tensor before it" if info.offset < position else "leaves a hole before it"
            raise CheckpointError(f"{path.name}: tensor {name!r} {fault}; the file is damaged.")
        position += info.nbytes
    missing = position - (data_start + data_bytes)
    if missing > 0:
        raise CheckpointError(
            f"{path.name}: its tensors run {missing:,} bytes past the end of the file, which is cut short; "
            "fetch it again."
        )
    if missing < 0:
        raise CheckpointError(f"{path.name} has {-missing:,} bytes that belong to no tensor; the file is damaged.")
