"""Golden folders: a tiny checkpoint, one `config.json` a spelling, and the reference's logits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file
from variants import Config

ROOT = Path(__file__).parents[1] / "golden"


def config_file(spelling: str = "") -> str:
    """`config.json`, or `config.<spelling>.json` for another spelling of it."""
    return f"config.{spelling}.json" if spelling else "config.json"


def spellings(folder: Path) -> dict[str, Config]:
    """File name -> configuration, for every spelling in a folder."""
    return {path.name: json.loads(path.read_text()) for path in sorted(folder.glob("config*.json"))}


def write_config(folder: Path, config: Config, spelling: str = "") -> None:
    (folder / config_file(spelling)).write_text(json.dumps(config, indent=2) + "\n")


def write_weights(folder: Path, weights: dict[str, np.ndarray]) -> None:
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def read_expected(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [rows], int32, and logits [rows, vocab], float32."""
    tensors = load_file(folder / "expected.safetensors")
    return tensors["tokens"], tensors["logits"]


def write_expected(folder: Path, tokens: np.ndarray, logits: np.ndarray) -> None:
    save_file({"tokens": tokens, "logits": logits}, folder / "expected.safetensors")
