"""A run's state on disk: one safetensors file that is replaced whole, so that a kill leaves the last one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import mlx.core as mx

from russet.converters.recipes.source import Params
from russet.converters.recipes.trainer import State
from russet.engine.errors import CheckpointError, StorageError, TrainingError
from russet.engine.storage import require_space, writing
from russet.models.safetensors_file import open_safetensors

PARTS = ("params", "first", "second", "average")


def save_checkpoint(state: State, identity: dict[str, Any], path: Path) -> None:
    """Write a state beside `path` and put it in its place. Raises StorageError; the old file is left then."""
    groups = zip(PARTS, (state.params, *state.moments, state.average), strict=True)
    arrays = {f"{part}/{name}": array for part, group in groups for name, array in group.items()}
    # A fault of the device shows here, and is not taken for one of the disk.
    mx.eval(arrays)
    mx.synchronize()
    partial = path.with_name(f".{path.name}.partial.safetensors")
    metadata = {"step": str(state.step), "identity": json.dumps(identity, sort_keys=True)}
    try:
        require_space(path.parent, sum(array.nbytes for array in arrays.values()))
        with writing(path):
            try:
                mx.save_safetensors(str(partial), arrays, metadata)
            except RuntimeError as error:
                raise StorageError(f"{partial} could not be written ({error}); free some space and resume.") from error
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def load_checkpoint(path: Path, identity: dict[str, Any]) -> State:
    """The state in `path`.

    Raises CheckpointError for a damaged file, and TrainingError that names what differs where it is another run's.
    """
    open_safetensors(path)
    arrays, metadata = mx.load(str(path), return_metadata=True)
    assert isinstance(arrays, dict)
    try:
        step, known = int(metadata["step"]), json.loads(metadata["identity"])  # pyright: ignore[reportArgumentType]
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{path} is no checkpoint of a recipe; delete its folder and start again.") from error
    _refuse_other(path, known, json.loads(json.dumps(identity)))
    groups: dict[str, Params] = {part: {} for part in PARTS}
    for key, array in arrays.items():
        part, _, name = key.partition("/")
        groups[part][name] = array
    mx.eval(groups)
    return State(groups["params"], (groups["first"], groups["second"]), groups["average"], step)


def _refuse_other(path: Path, known: dict[str, Any], wanted: dict[str, Any]) -> None:
    ours, theirs = _flat(wanted), _flat(known)
    for key in ours | theirs:
        if theirs.get(key) != ours.get(key):
            raise TrainingError(
                f"{path} belongs to a run with {key} {theirs.get(key)!r}, not {ours.get(key)!r}; resume it with what "
                f"it was started with, or delete {path.parent} to start anew."
            )


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    """One name a value, `settings seed` for what is inside `settings`."""
    found = {key: value for key, value in values.items() if not isinstance(value, dict)}
    inside = (
        (f"{key} {name}", each) for key, value in values.items() if key not in found for name, each in value.items()
    )
    return found | dict(inside)
