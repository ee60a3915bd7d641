"""The models in the cache: what is there, and taking one away."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from russet.engine.errors import ModelNotFoundError
from russet.engine.paths import models_dir
from russet.engine.storage import folder_bytes, writing
from russet.models.catalog import CATALOG, PREDICTORS
from russet.models.shipped import shipped

SOURCE_FILE = "source.json"


@dataclass(frozen=True)
class CachedModel:
    """A converted model: the name that `russet.load` takes, its folder, and the source it was converted from."""

    name: str
    path: Path
    nbytes: int
    source: str


def folder_name(name: str) -> str:
    """Return the name of the folder of a model: org/name becomes org--name."""
    return name.replace("/", "--")


def cached_models() -> list[CachedModel]:
    """Return the models in the cache, by name."""
    root = models_dir()
    folders = [path for path in root.iterdir() if not path.name.startswith(".")] if root.is_dir() else []
    return sorted((_describe(path) for path in folders if path.is_dir()), key=lambda model: model.name)


def remove_model(name: str) -> CachedModel:
    """Delete a model from the cache and return what it was; raises ModelNotFoundError, StorageError."""
    for model in cached_models():
        if model.name == name:
            # Renamed first, so that a model is never half there.
            doomed = model.path.with_name(f".{model.path.name}.removed")
            with writing(model.path):
                shutil.rmtree(doomed, ignore_errors=True)
                model.path.rename(doomed)
                shutil.rmtree(doomed)
            return model
    if name in (*CATALOG, *PREDICTORS) and shipped(name):
        raise ModelNotFoundError(f"{name} comes with the repository and takes no room in the cache: leave it there.")
    raise ModelNotFoundError(f"{name} is not in the cache: `russet models` lists what is.")


def _describe(folder: Path) -> CachedModel:
    try:
        record = json.loads((folder / SOURCE_FILE).read_text())
        name, source = str(record["name"]), str(record["source"])
    except (OSError, ValueError, KeyError, TypeError):
        name, source = folder.name, "unknown"
    return CachedModel(name, folder, folder_bytes(folder), source)
