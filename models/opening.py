"""Open a model folder with our decoder, or with mlx-lm's where the architecture is not ours."""

from __future__ import annotations

from pathlib import Path

from russet.engine.errors import MissingDependencyError
from russet.engine.prefill.base import Extendable
from russet.models.config import DecoderConfig
from russet.models.config_file import read_config
from russet.models.families import FAMILIES, read_decoder
from russet.models.loading import load_decoder


def eos_tokens(folder: Path) -> tuple[int, ...]:
    """The end tokens that config.json names, for the architectures of our own."""
    config = read_config(folder)
    return read_decoder(config).eos_token_ids if config.get("model_type") in FAMILIES else ()


def open_decoder(folder: Path, dtype: str | None) -> tuple[Extendable, DecoderConfig | None, int]:
    """The decoder, its configuration (None where mlx-lm serves), and the most positions it can hold."""
    config = read_config(folder)
    if config.get("model_type") in FAMILIES:
        decoder = load_decoder(folder, dtype)
        return decoder, decoder.config, decoder.config.max_positions
    try:
        from russet.models.fallback import load_foreign
    except ImportError:
        raise MissingDependencyError(
            f"{config.get('model_type')!r} is not among Russet's own architectures ({', '.join(FAMILIES)}); "
            "install russet[mlx-lm] to run it through mlx-lm."
        ) from None
    foreign = load_foreign(folder, config, dtype)
    return foreign, None, foreign.max_positions
