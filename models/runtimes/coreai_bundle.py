"""The folder of a Core AI language model: metadata.json, NAME.aimodel, and `tokenizer/` with config.json beside it.

The layout, and what metadata.json says, are those that Apple's coreai-models writes and its Swift runner reads
(schema 0.2: python/src/coreai_models/export/bundle.py and swift/Sources/CoreAIShared/Bundle there).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from russet.engine.errors import CheckpointError, ModelNotFoundError

SUFFIX = ".aimodel"
METADATA = "metadata.json"
TOKENIZER = "tokenizer"
VERSION = "0.2"
PROGRAM, HASH = "main.mlirb", "main.hash"

MAIN, PREFILL = "main", "prefill"
"""Functions: logits of every row, as Apple's runner calls it; logits of the last row only."""
TOKENS, POSITIONS, LOGITS = "input_ids", "position_ids", "logits"
KEYS, VALUES = "keyCache", "valueCache"

FAMILY, WEIGHTS, CHUNK = (f"russet.{key}" for key in ("family", "weights", "chunk"))
"""Keys of the metadata's user data, whose values are text."""


@dataclass(frozen=True)
class Bundle:
    """What metadata.json says, with the model's place."""

    folder: Path
    model: Path
    vocab_size: int
    context: int
    chunk: int


def metadata(
    name: str, tokenizer: str, vocab_size: int, context: int, compression: str | None, user: dict[str, str]
) -> dict[str, Any]:
    """The content of metadata.json; `tokenizer` is a hub repository or a name."""
    return {
        "metadata_version": VERSION,
        "kind": "llm",
        "name": name,
        "assets": {"main": name + SUFFIX},
        "language": {
            "tokenizer": tokenizer,
            "vocab_size": vocab_size,
            "max_context_length": context,
            "embedded_tokenizer": True,
            "function_map": {"main": [MAIN]},
        },
        "source": {"model_definition": "russet", "hf_model_id": tokenizer},
        "compression": compression,
        "user_data": user,
    }


def bundle_folder(path: Path) -> Path:
    """The bundle that `path` is, or in which the model `path` lies."""
    return path.absolute().parent if path.suffix == SUFFIX else path


def description_of(path: Path) -> Path:
    """The folder with config.json and the tokenizer."""
    found = bundle_folder(path) / TOKENIZER
    if not (found / "config.json").is_file():
        raise ModelNotFoundError(
            f"{path} lies beside no {TOKENIZER} folder with config.json, so it was not made by `russet convert --to "
            "coreai`; convert the model with it."
        )
    return found


def read_bundle(path: Path) -> Bundle:
    """Read a bundle's metadata; CheckpointError where it is damaged, or the model is not where it says."""
    folder = bundle_folder(path)
    try:
        said = json.loads((folder / METADATA).read_text(encoding="utf-8"))
        language = said["language"]
        bundle = Bundle(
            folder=folder,
            model=folder / Path(said["assets"]["main"]).name,
            vocab_size=int(language["vocab_size"]),
            context=int(language["max_context_length"]),
            chunk=int(said["user_data"][CHUNK]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder / METADATA} does not describe a package of `russet convert --to coreai` ({error}); convert the "
            "model again."
        ) from None
    if not bundle.model.is_dir() or bundle.context < 1 or bundle.chunk < 1:
        raise CheckpointError(f"{folder} lacks {bundle.model.name}, or a context or chunk; convert the model again.")
    return bundle


def check_model(model: Path) -> None:
    """CheckpointError unless the program is the one that was written: the runtime ends the process on a damaged one."""
    try:
        with (model / PROGRAM).open("rb") as file:
            same = hashlib.file_digest(file, "sha256").digest() == (model / HASH).read_bytes()
    except OSError as error:
        raise CheckpointError(f"{model} could not be read ({error.strerror}); convert the model again.") from error
    if not same:
        raise CheckpointError(f"{model / PROGRAM} is damaged: its hash is another than {HASH} says; convert again.")
