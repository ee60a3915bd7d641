"""Exported packages as contenders: what `russet convert --to` wrote, through Apple's runtimes or where it runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from russet.bench.ours import Russet
from russet.engine.api import load
from russet.engine.errors import InvalidOptionError, PeerError
from russet.engine.storage import folder_bytes
from russet.models.runtimes import COMPUTE_UNITS, package_suffix
from russet.models.runtimes.base import PackageDecoder


@dataclass(frozen=True, slots=True)
class PackageChoice:
    """A package and what it is to run on (None: what its runtime prefers), as `PATH` or `PATH@UNITS`."""

    path: Path
    units: str | None

    @staticmethod
    def parse(text: str) -> PackageChoice:
        """Raises InvalidOptionError for a path that is no package, or units that do not exist."""
        path, _, units = text.rpartition("@") if "@" in text else (text, "", "")
        if units and units not in COMPUTE_UNITS:
            raise InvalidOptionError(f"{text!r} ends in {units!r}; it must be {', '.join(COMPUTE_UNITS)}.")
        if not Path(path).exists() or package_suffix(Path(path)) is None:
            raise InvalidOptionError(f"{path} is no package that `russet convert --to` wrote; name one.")
        return PackageChoice(Path(path), units or None)


def weights_of(model: Any) -> int:
    """Bytes of a package's files, where a model is one; 0 for what MLX holds itself."""
    return folder_bytes(model.path) if isinstance(model.decoder, PackageDecoder) else 0


def package_contender(choice: PackageChoice, vocab_size: int, positions: int) -> Russet:
    """A package for at least `positions` positions, with the vocabulary of the model that it is measured beside.

    Its memory counts the package's files and what MLX holds, not what its runtime allocates.
    """
    model = load(choice.path, compute_units=choice.units)
    if model.vocab_size != vocab_size:
        raise PeerError(
            f"{choice.path} has {model.vocab_size} tokens and the model {vocab_size}: measure it beside the model that "
            "it was made from."
        )
    if model.max_positions < positions:
        raise PeerError(
            f"{choice.path} holds {model.max_positions} positions and {positions} are needed; convert it with a longer "
            "--context, or choose shorter prompts."
        )
    contender = Russet(model, weights_of(model))
    contender.name = choice.path.name + (f" on {choice.units}" if choice.units else "")
    return contender
