"""Golden checkpoints, exported, run in Apple's runtime, and held against our own decoder in float32."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

pytest.importorskip("coreai")

from russet.converters.exporting import ExportOptions, export
from russet.models.loading import load_decoder
from russet.models.runtimes import coreai_bundle as names
from russet.models.runtimes.coreai import CoreAIDecoder

GOLDEN = Path(__file__).parents[2] / "golden"

COUNT = 40
MIXED = (9, 5, 1, 1, 7, 8, 3, 1, 1, 1, 1, 1, 1)
"""Tokens of each call, 40 in all."""


@pytest.fixture(scope="session")
def variant(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`variant(name, **changes)`: a golden model with its config.json changed."""

    def make(name: str, **changes: Any) -> Path:
        if not changes:
            return GOLDEN / name
        folder = tmp_path_factory.mktemp("variant") / name
        shutil.copytree(GOLDEN / name, folder)
        config = json.loads((folder / "config.json").read_text()) | changes
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return make


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., CoreAIDecoder]]:
    """`opened(folder, **options)`: the model exported and loaded, without the run that ends an export."""
    monkeypatch.setattr("russet.converters.coreai.export._check", lambda *args: None)
    decoders: list[CoreAIDecoder] = []

    def make(folder: Path, **options: Any) -> CoreAIDecoder:
        dst = tmp_path / f"package{len(decoders)}"
        export(folder, dst, "coreai", options=ExportOptions(**options))
        decoders.append(CoreAIDecoder(dst, None))
        return decoders[-1]

    yield make
    for decoder in decoders:
        decoder.close()


def token_ids(vocab: int | None, count: int = COUNT) -> np.ndarray:
    assert vocab is not None
    return np.random.default_rng(0).integers(0, vocab, count).astype(np.int32)


def our_logits(folder: Path, tokens: np.ndarray) -> np.ndarray:
    """[tokens, vocab] of our decoder in float32, in one pass."""
    decoder = load_decoder(folder, dtype="float32")
    logits = decoder.extend(mx.array(tokens)[None], decoder.new_cache(), logits=len(tokens))
    assert logits is not None
    return np.array(logits[0])


def every_row(decoder: CoreAIDecoder, tokens: np.ndarray) -> np.ndarray:
    """Logits [tokens, vocab] by the function that Apple's runner calls, in calls of `MIXED` sizes."""
    cache, rows = decoder.new_cache(), []
    cache.reserve(len(tokens))
    for size in MIXED:
        end = cache.next_position + size
        inputs = {
            names.TOKENS: tokens[None, cache.next_position : end],
            names.POSITIONS: np.arange(end, dtype=np.int32)[None],
        }
        rows.append(decoder._runner.run(names.MAIN, inputs, cache.state)[names.LOGITS][0].astype(np.float32))
        cache.next_position = end
    return np.concatenate(rows)


def last_rows(decoder: CoreAIDecoder, tokens: np.ndarray) -> dict[int, np.ndarray]:
    """The logits of each call's last token, by its position, as the engine asks for them."""
    cache, found = decoder.new_cache(), {}
    for size in MIXED:
        logits = decoder.extend(mx.array(tokens[None, cache.next_position : cache.next_position + size]), cache)
        assert logits is not None
        found[cache.next_position - 1] = np.array(logits[0, -1])
    return found
