"""The weight files of a model folder: found through its index, and never outside the folder."""

from __future__ import annotations

import json
from pathlib import Path, PureWindowsPath

from russet.engine.errors import CheckpointError, UnsafeCheckpointError

INDEX = "model.safetensors.index.json"


def shards(folder: str | Path) -> list[Path]:
    """The safetensors files of a model folder, in the order of their names.

    They are those that `model.safetensors.index.json` names, else `model*.safetensors`. Raises
    CheckpointError when there are none, or the index is damaged or names a missing file, and
    UnsafeCheckpointError when a file is not inside the folder.
    """
    folder = Path(folder)
    if (folder / INDEX).exists():
        return indexed_files(folder, INDEX)
    found = sorted(folder.glob("model*.safetensors"))
    if not found:
        raise CheckpointError(f"{folder} holds no model.safetensors and no {INDEX}; is it a model folder?")
    return [inside(folder, path.name) for path in found]


def indexed_files(folder: Path, index: str) -> list[Path]:
    """The distinct files that a Hugging Face index names in its `weight_map`, each verified to be inside."""
    try:
        weight_map = json.loads((folder / index).read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(weight_map.values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{folder / index} is not a JSON index with a weight_map; fetch it again.") from error
    except OSError as error:
        raise CheckpointError(f"{folder / index} could not be read ({error.strerror}).") from error
    if not names or not all(isinstance(name, str) for name in names):
        raise CheckpointError(f"The weight_map of {folder / index} names no files; fetch it again.")
    return [inside(folder, name) for name in names]


def inside(folder: Path, name: str) -> Path:
    """`folder / name`, verified to be an existing file that lies in the folder.

    A Hugging Face cache keeps its snapshots as links into `blobs` beside them: only those links are allowed.
    """
    parsed = PureWindowsPath(name)  # it takes both kinds of slash, and drives, for what they are
    if parsed.anchor or ".." in parsed.parts:
        raise UnsafeCheckpointError(
            f"The index of {folder} names {name!r}, which is outside the folder; only files beside the index are read."
        )
    path = folder / name
    if not path.is_file():
        raise CheckpointError(f"{folder} lacks {name!r}, which its index names; fetch the model again.")
    roots = [folder.resolve()]
    if folder.absolute().parent.name == "snapshots":
        roots.append(folder.absolute().parent.parent.resolve() / "blobs")
    if not any(path.resolve().is_relative_to(root) for root in roots):
        raise UnsafeCheckpointError(
            f"{path} is a link to {path.resolve()}, outside the model folder; put the file itself there."
        )
    return path
