"""One file a family: a checkpoint's configuration and tensor names -> ours. The contract is in base.py."""

from __future__ import annotations

import importlib

from russet.engine.errors import UnsupportedModelError
from russet.models.families.base import Config, Family

# config.json's model_type -> the module that reads it
FAMILIES = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma3_text": "gemma3",
    "openelm": "openelm",
    "afm7": "afm",
}


def family_of(config: Config) -> Family:
    """The family module for a `config.json`; `UnsupportedModelError` names the architecture and the known ones."""
    model_type = config.get("model_type")
    if model_type not in FAMILIES:
        raise UnsupportedModelError(
            f"config.json has model_type {model_type!r}; Russet implements {', '.join(sorted(FAMILIES))}."
        )
    return importlib.import_module(f"russet.models.families.{FAMILIES[model_type]}")  # type: ignore[return-value]
