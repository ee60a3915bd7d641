"""One file a family: a checkpoint's configuration and tensor names -> ours. The contract is in base.py."""

from __future__ import annotations

import importlib

from russet.engine.errors import UnsupportedModelError
from russet.models.config import DecoderConfig
from russet.models.families.base import Config, Family
from russet.models.families.sound import refuse_unsound
from russet.models.variant import KEY

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


def read_decoder(config: Config) -> DecoderConfig:
    """A `config.json` as data that a decoder can be built from.

    Raises `UnsupportedModelError` for whatever cannot be: an architecture or an option that is not implemented, a value
    of the wrong kind, numbers that contradict each other.
    """
    family = family_of(config)
    try:
        decoder = family.read(config)
        if KEY in config and FAMILIES[config["model_type"]] != "llama":
            raise UnsupportedModelError(
                f"config.json has a block {KEY!r}; of Russet's families, llama and mistral are implemented with it."
            )
        refuse_unsound(decoder)
        kind = config.get("attention_kind") or "softmax"
        if any(layer.attention != kind for layer in decoder.layers):
            raise UnsupportedModelError(
                f"config.json has attention_kind {kind!r}; this family is implemented for softmax only."
            )
    except (TypeError, ValueError, KeyError, AttributeError, ArithmeticError) as error:
        raise UnsupportedModelError(
            f"config.json of this {config['model_type']} model has a value that cannot be ({error}); fetch it again."
        ) from error
    return decoder
