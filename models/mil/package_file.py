"""The files of a .mlpackage: its manifest, the model's protobuf, and its weight files."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

from russet.engine.errors import CheckpointError, UnsafeCheckpointError
from russet.models.mil.types import BLOB_TYPES, from_bytes

MANIFEST = "Manifest.json"
_SENTINEL = 0xDEADBEEF
_STORAGE_VERSION = 2


def item_path(package: Path, name: str) -> Path | None:
    """The file or folder of the item `name` of a package, or None; CheckpointError for a manifest that is damaged."""
    entries = _manifest(package).get("itemInfoEntries", {}).values()
    found = next((entry.get("path") for entry in entries if entry.get("name") == name), None)
    return None if found is None else _inside(package, found)


def read_spec(package: Path) -> tuple[Any, Path]:
    """The model's protobuf message and the folder that its weight files are relative to."""
    from coremltools.proto import Model_pb2
    from google.protobuf.message import DecodeError

    manifest = _manifest(package)
    try:
        path = _inside(package, manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"])
        spec = Model_pb2.Model()  # type: ignore[attr-defined]
        spec.ParseFromString(path.read_bytes())  # pyright: ignore[reportAttributeAccessIssue]
    except (KeyError, TypeError, DecodeError, OSError) as error:
        raise CheckpointError(f"{package} is not a whole Core ML package ({error}); convert the model again.") from None
    if spec.WhichOneof("Type") != "mlProgram":  # pyright: ignore[reportAttributeAccessIssue]
        raise CheckpointError(f"{package} holds no ML program, which Russet's packages are.")
    return spec, path.parent


class WeightFile:
    """A `weight.bin` (MILBlob storage, version 2): a header, then blobs with 64 bytes before each that describe it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._bytes = np.memmap(path, np.uint8, "r")
            version = struct.unpack("<II", self._bytes[:8].tobytes())[1]
        except (OSError, ValueError, struct.error) as error:
            raise CheckpointError(f"{path} could not be read as a weight file ({error}); convert again.") from None
        if version != _STORAGE_VERSION:
            raise CheckpointError(f"{path} is a weight file of version {version}; {_STORAGE_VERSION} is expected.")

    def read(self, offset: int, data_type: int, shape: tuple[int, ...]) -> np.ndarray:
        """The blob whose metadata lies at `offset`; CheckpointError where it is not what the model says."""
        header = self._bytes[offset : offset + 32].tobytes()
        if len(header) < 32:
            raise CheckpointError(f"{self.path} ends before a weight that its model names; convert again.")
        sentinel, blob_type, size, start, _ = struct.unpack("<IIQQQ", header)
        if sentinel != _SENTINEL or BLOB_TYPES.get(blob_type) != data_type or start + size > len(self._bytes):
            raise CheckpointError(f"{self.path} is damaged at byte {offset}; convert again.")
        return from_bytes(memoryview(self._bytes[start : start + size]), data_type, shape)  # pyright: ignore[reportArgumentType]


def weight_path(base: Path, name: str) -> Path:
    """Where a weight file lies that the model names, as in `@model_path/weights/weight.bin`."""
    return _resolved(base, name.removeprefix("@model_path/"))


def _manifest(package: Path) -> dict[str, Any]:
    path = package / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{package} is not a Core ML package ({MANIFEST}: {error}).") from None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("itemInfoEntries"), dict):
        raise CheckpointError(f"{path} lists no items, so {package.name} is not a Core ML package.")
    return manifest


def _inside(package: Path, name: str) -> Path:
    return _resolved(package / "Data", name)


def _resolved(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise UnsafeCheckpointError(f"{folder.parent.name} names {name!r}, which is outside the package.")
    return path
