"""`config.json` of a model folder, read and nothing more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from russet.engine.errors import CheckpointError, ModelNotFoundError


def read_config(folder: Path) -> dict[str, Any]:
    """The JSON object; `ModelNotFoundError` where there is no file, `CheckpointError` where it is damaged."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelNotFoundError(f"{folder} has no config.json, so it is not a model folder.") from None
    except OSError as error:
        raise CheckpointError(f"{path} could not be read ({error.strerror}).") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}); fetch the model again.") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} is not a JSON object; fetch the model again.")
    for key, (kind, expected) in _KINDS.items():
        if not isinstance(config.get(key), kind | None):
            raise CheckpointError(f"{path} has {key} = {config[key]!r}; {expected} is expected.")
    return config


_KINDS: dict[str, tuple[type, str]] = {
    "model_type": (str, "a word"),
    "quantization": (dict, "an object"),
    "quantization_config": (dict, "an object"),
}
"""Keys that every reader of a configuration looks at."""
