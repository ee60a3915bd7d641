"""Golden checkpoints in float16, exported, run, and held against our own decoder in float32."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from russet.converters.convert import convert
from russet.converters.exporting import ExportOptions, export
from russet.models.loading import load_decoder
from russet.models.runtimes.coreml import CoreMLDecoder

if importlib.util.find_spec("coremltools") is None:  # it has no wheels for the newest Python
    collect_ignore_glob = ["test_*.py"]

GOLDEN = Path(__file__).parents[2] / "golden"

CONTEXT, CHUNK = 40, 8
MIXED = (8, 5, 1, 1, 7, 8, 3, 1, 1, 1, 1, 1, 1, 1)
"""Tokens of each call: whole chunks, parts of chunks and single tokens, 40 in all."""


def _drop_keys_values(folder: Path, sources: Sequence[int | None]) -> None:
    """Take the projections away that layers do not have when they read another's keys and values."""
    gone = tuple(
        f".layers.{i}.self_attn.{part}_proj." for i, source in enumerate(sources) if source is not None for part in "kv"
    )
    if gone:
        tensors = mx.load(str(folder / "model.safetensors"))
        assert isinstance(tensors, dict)
        kept = {name: array for name, array in tensors.items() if not any(part in name for part in gone)}
        mx.eval(kept)
        mx.save_safetensors(str(folder / "model.safetensors"), kept, metadata={"format": "pt"})


@pytest.fixture(scope="session")
def half(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`half(name, **changes)`: a golden model with float16 weights, its config.json changed."""
    made: dict[str, Path] = {}

    def make(name: str, **changes: Any) -> Path:
        key = name + json.dumps(changes, sort_keys=True)
        if key not in made:
            source, folder = tmp_path_factory.mktemp(name), tmp_path_factory.mktemp("half") / name
            shutil.copytree(GOLDEN / name, source, dirs_exist_ok=True)
            config = json.loads((source / "config.json").read_text()) | changes
            (source / "config.json").write_text(json.dumps(config))
            _drop_keys_values(source, config.get("russet", {}).get("kv_source", []))
            convert(source, folder, dtype="float16")
            made[key] = folder
        return made[key]

    return make


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`exported(folder, **options)`: its package, made once for equal options."""
    made: dict[str, Path] = {}

    def make(folder: Path, **options: Any) -> Path:
        options = {"context": CONTEXT, "chunk": CHUNK, **options}
        key = f"{folder}{sorted(options.items())}"
        if key not in made:
            made[key] = tmp_path_factory.mktemp("package") / "model.mlpackage"
            export(folder, made[key], "coreml", options=ExportOptions(**options))
        return made[key]

    return make


def token_ids(vocab: int, count: int = CONTEXT, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, vocab, count).astype(np.int32)


def our_logits(folder: Path, tokens: np.ndarray) -> np.ndarray:
    """[tokens, vocab] of our decoder in float32, in one pass."""
    decoder = load_decoder(folder, dtype="float32")
    logits = decoder.extend(mx.array(tokens)[None], decoder.new_cache(), logits=len(tokens))
    assert logits is not None
    return np.array(logits[0])


def run_calls(decoder: CoreMLDecoder, tokens: np.ndarray, sizes: Sequence[int] = MIXED) -> dict[int, np.ndarray]:
    """The logits of each call's last token by its position; calls that would not fit become single tokens."""
    state, position, found = decoder.make_state(), 0, {}
    for size in sizes:
        for part in decoder.calls(tokens[position : position + size], position):
            logits = decoder.run(part, position, state)
            position += len(part)
            found[position - 1] = logits.astype(np.float32)
    return found


def largest_error(found: dict[int, np.ndarray], wanted: np.ndarray) -> float:
    """The largest difference; every argmax has to be equal."""
    for position, logits in found.items():
        assert logits.argmax() == wanted[position].argmax(), position
    return max(float(np.abs(logits - wanted[position]).max()) for position, logits in found.items())
