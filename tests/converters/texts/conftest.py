"""Prose in the tiny model's tokens, which are bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from russet.converters.recipes.source import Source, open_source
from russet.converters.texts import lookup
from russet.engine.tokenizer import load_tokenizer
from russet.engine.tokenizer.base import Tokenizer

NAMES = ("Anna", "Bruno", "Clara", "David", "Emma", "Felix", "Greta", "Hugo", "Ida", "Jonas")
PLACES = ("harbour", "library", "market", "station", "garden", "museum", "bakery", "theatre", "school", "forest")


@pytest.fixture(autouse=True)
def long_items(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sentences take more tokens here, one a byte."""
    monkeypatch.setattr(lookup, "FEWEST", 700)


@pytest.fixture(scope="session")
def tokenizer(tiny_folder: Path) -> Tokenizer:
    return load_tokenizer(tiny_folder)


@pytest.fixture(scope="session")
def source(tiny_folder: Path) -> Source:
    return open_source(tiny_folder)


@pytest.fixture(scope="session")
def prose(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    """A folder with one shard: sentences that differ, with a table of numbers between two documents."""
    rng, sentences = np.random.default_rng(0), []
    for i in range(300):
        name, place = NAMES[rng.integers(10)], PLACES[rng.integers(10)]
        sentences.append(f"On day {i} {name} walked to the old {place} and stayed for {rng.integers(2, 90)} minutes.")
    table = "\n".join(f"{i} | {i * i} | {i**3}" for i in range(40))
    folder = tmp_path_factory.mktemp("prose")
    ids: list[int] = []
    for text in (" ".join(sentences[:150]), table, " ".join(sentences[150:])):
        ids += [*tokenizer.encode(text), 256]
    np.array(ids, dtype="<u2").tofile(folder / "train_00.bin")
    np.array(tokenizer.encode("Held out."), dtype="<u2").tofile(folder / "val.bin")
    return folder
