"""A tiny model that knows nothing, and a little text for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from russet.converters.recipes import recipe_class
from russet.converters.recipes.base import Batch, Objective, Options, Recipe
from russet.converters.recipes.export import Exported
from russet.converters.recipes.run import Evaluation, Run
from russet.converters.recipes.source import Source, open_source
from russet.converters.recipes.trainer import Settings

LENGTH, BATCH = 16, 4


@pytest.fixture(scope="session")
def source_folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with an embedding so small that its guesses are near uniform."""
    folder = tmp_path_factory.mktemp("source")
    for file in tiny_folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    tensors = mx.load(str(tiny_folder / "model.safetensors"))
    assert isinstance(tensors, dict)
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"] * 0.1
    mx.save_safetensors(str(folder / "model.safetensors"), tensors, metadata={"format": "mlx"})
    return folder


@pytest.fixture
def vocab_size(source_folder: Path) -> int:
    return json.loads((source_folder / "config.json").read_text())["vocab_size"]


@pytest.fixture
def data(tmp_path: Path, vocab_size: int) -> Path:
    """Two shards and held-out text: ids that repeat, so that there is something to learn."""
    folder = tmp_path / "data"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, count in (("train_00.bin", 700), ("train_01.bin", 401), ("val.bin", 200)):
        np.repeat(rng.integers(0, vocab_size, count // 4 + 1), 4)[:count].astype("<u2").tofile(folder / name)
    return folder


@pytest.fixture
def make_run(source_folder: Path, data: Path, tmp_path: Path) -> Callable[..., Run]:
    """`make_run("relufy", steps=3, options=..., **of_the_run)`."""

    def make(
        name: str,
        steps: int = 3,
        options: Options | None = None,
        objective: Objective | None = None,
        settings: dict | None = None,
        **rest,
    ) -> Run:
        recipe: Recipe = recipe_class(name)(options, objective)
        wanted = Settings(
            **{"tokens": steps * BATCH * LENGTH, "batch": BATCH, "length": LENGTH, "rate": 3e-3} | (settings or {})
        )
        rest = {"src": source_folder, "dst": tmp_path / "dst", "data": data, "evaluation": Evaluation(tokens=64)} | rest
        return Run(recipe, settings=wanted, **rest)

    return make


@pytest.fixture(scope="session")
def source(tiny_folder: Path) -> Source:
    return open_source(tiny_folder)


@pytest.fixture(scope="session")
def batches(source: Source) -> list[Batch]:
    ids = np.random.default_rng(0).integers(0, source.config.vocab_size, (2, 4, 25))
    return [Batch(mx.array(part[:, :-1]), mx.array(part[:, 1:])) for part in ids]


@pytest.fixture(scope="session")
def written() -> Callable[[Exported, Path], Path]:
    """Writes a model folder without a tokenizer."""

    def write(exported: Exported, folder: Path) -> Path:
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(exported.config))
        mx.save_safetensors(str(folder / "model.safetensors"), exported.tensors, metadata={"format": "mlx"})
        return folder

    return write
