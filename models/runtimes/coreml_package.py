"""Names and files of a Core ML package that `russet convert --to coreml` writes, for its writer and its reader."""

from __future__ import annotations

import re
from pathlib import Path

from russet.engine.errors import CheckpointError, ModelNotFoundError
from russet.models.mil.package_file import item_path

SUFFIX = ".mlpackage"
DESCRIPTION = "description"
"""The item of a package with config.json and the tokenizer's files."""

LAYOUT, CONTEXT, CHUNK, WEIGHTS, FAMILY = (
    f"russet.{key}" for key in ("layout", "context", "chunk", "weights", "family")
)
"""Metadata of a package."""
SWIFT_NAME = "co.huggingface.exporters.name"
"""Metadata by which Hugging Face's Swift client finds the tokenizer: a hub repository."""

PREFILL, DECODE, MAIN = "prefill", "decode", "main"
TOKENS, POSITION, LAST_ROW, MASK, ROWS_IN = "inputIds", "position", "lastRow", "causalMask", "hidden"
KEYS, VALUES = "keyCache", "valueCache"
LOGITS, ROWS_OUT = "logits", "hiddenOut"


def package_names(count: int) -> list[str]:
    """What the packages of a model are called in a folder of their own."""
    return [f"part-{i + 1}-of-{count}{SUFFIX}" for i in range(count)] if count > 1 else [f"model{SUFFIX}"]


def packages_of(path: Path) -> list[Path]:
    """The packages of a model in order: `path` itself, or those in the folder `path`; CheckpointError if one lacks."""
    if path.suffix == SUFFIX:
        return [path]
    found = {package.name for package in path.glob(f"*{SUFFIX}")}
    counts = [int(match[1]) for name in found if (match := re.fullmatch(rf"part-\d+-of-(\d+){SUFFIX}", name))]
    wanted = package_names(counts[0] if counts else 1)
    if found != set(wanted):
        present, others = len(found & set(wanted)), len(found - set(wanted))
        raise CheckpointError(
            f"{path} holds {present} of {len(wanted)} packages of a model and {others} others; copy the folder again."
        )
    return [path / name for name in wanted]


def description_of(path: Path) -> Path:
    """The folder with config.json and tokenizer: an item of a single package, or the folder of several."""
    found = path if path.suffix != SUFFIX else item_path(path, DESCRIPTION)
    if found is None or not (found / "config.json").is_file():
        raise ModelNotFoundError(
            f"{path} holds no config.json and tokenizer, so it was not made by `russet convert --to coreml`; convert "
            "the model with it."
        )
    return found
