"""Where Russet keeps what it can fetch or compute again."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def cache_root() -> Path:
    """Return $RUSSET_CACHE, or the folder `russet` in the platform's cache; it may not exist yet.

    The platform's cache is ~/Library/Caches on macOS, else $XDG_CACHE_HOME or ~/.cache (XDG Base Directory
    Specification: a relative $XDG_CACHE_HOME is ignored).
    """
    if chosen := os.environ.get("RUSSET_CACHE"):
        return Path(chosen).expanduser().absolute()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "russet"
    xdg = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (xdg if xdg.is_absolute() else Path.home() / ".cache") / "russet"


def models_dir() -> Path:
    """Return the folder of converted models, one folder a model."""
    return cache_root() / "models"


def downloads_dir() -> Path:
    """Return the folder of files on their way to becoming models."""
    return cache_root() / "downloads"


def prefixes_dir() -> Path:
    """Return the folder of prefix caches."""
    return cache_root() / "prefixes"


def documents_dir() -> Path:
    """Return the folder of documents that superposition has computed."""
    return cache_root() / "documents"


def texts_dir() -> Path:
    """Return the folder of text that was tokenised for recipes."""
    return cache_root() / "texts"


def crossovers_file() -> Path:
    """Return the file of measured crossovers (models/crossovers.py)."""
    return cache_root() / "crossovers.json"
