"""Open a model with our decoder, or with another program's: a package's runtime, or mlx-lm for other architectures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from russet.engine.errors import InvalidOptionError, MissingDependencyError
from russet.engine.prefill.base import Extendable
from russet.models.config import DecoderConfig
from russet.models.config_file import read_config
from russet.models.families import FAMILIES, read_decoder
from russet.models.loading import load_decoder
from russet.models.runtimes import COMPUTE_UNITS, package_kind, package_suffix


@dataclass(frozen=True)
class Opened:
    """A decoder, its configuration (None where another program computes it), and the most positions it can hold."""

    decoder: Extendable
    config: DecoderConfig | None
    max_positions: int


def description_folder(path: Path) -> Path:
    """The folder with config.json, tokenizer and chat template: a model folder itself, or a part of a package."""
    return package_kind(path).files(path) if package_suffix(path) else path


def eos_tokens(folder: Path) -> tuple[int, ...]:
    """The end tokens that config.json names, for the architectures of our own."""
    config = read_config(folder)
    return read_decoder(config).eos_token_ids if config.get("model_type") in FAMILIES else ()


def open_decoder(path: Path, dtype: str | None, compute_units: str | None = None) -> Opened:
    """The decoder of a model folder or a package; `compute_units` says what a package may run on."""
    if compute_units is not None and compute_units not in COMPUTE_UNITS:
        raise InvalidOptionError(f"compute_units is {compute_units!r}; it must be {', '.join(COMPUTE_UNITS)}.")
    if package_suffix(path):
        if dtype is not None:
            raise InvalidOptionError(
                f"dtype is {dtype!r}, but a package computes as it was converted; leave it out or convert it anew."
            )
        package = package_kind(path).load(path, compute_units)
        return Opened(package, None, package.max_positions)
    if compute_units is not None:
        raise InvalidOptionError(
            f"compute_units is for packages that `russet convert --to` wrote; {path.name} runs on MLX's device."
        )
    config = read_config(path)
    if config.get("model_type") in FAMILIES:
        decoder = load_decoder(path, dtype)
        return Opened(decoder, decoder.config, decoder.config.max_positions)
    try:
        from russet.models.fallback import load_foreign
    except ImportError:
        raise MissingDependencyError(
            f"{config.get('model_type')!r} is not among Russet's own architectures ({', '.join(FAMILIES)}); "
            "install russet[mlx-lm] to run it through mlx-lm."
        ) from None
    foreign = load_foreign(path, config, dtype)
    return Opened(foreign, None, foreign.max_positions)
