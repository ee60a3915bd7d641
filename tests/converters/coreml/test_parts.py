"""Models that are cut into several packages, since one weight file may hold 2 GB."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import russet
from russet.converters.coreml.export import export
from russet.converters.coreml.plan import make_plan
from russet.converters.exporting import ExportOptions
from russet.converters.model_tensors import ModelTensors
from russet.engine.errors import CheckpointError, InvalidOptionError
from russet.engine.progress import SilentProgress
from russet.models.mil.interpreter import Interpreter
from russet.models.runtimes.coreml import interpreted

from .conftest import CHUNK, CONTEXT, largest_error, our_logits, run_calls, token_ids

OPTIONS = ExportOptions(context=CONTEXT, chunk=CHUNK)


def layer_bytes(model: ModelTensors) -> int:
    plan = make_plan(model, OPTIONS)
    return sum(size for role, size in plan.sizes.items() if role.startswith("layers.1."))


@pytest.mark.parametrize("name", ["llama-tied", "gemma3"])
def test_parts_compute_what_one_package_does(name: str, half: Callable[..., Path], tmp_path: Path) -> None:
    folder = half(name)
    model = ModelTensors(folder)
    plan = make_plan(model, OPTIONS)
    limit = plan.sizes["embed"] + plan.sizes["norm"] + layer_bytes(model) + 100
    report = export(model, tmp_path / "cut", OPTIONS, False, SilentProgress(), max_bytes=limit)
    count = len(report.packages)
    assert count > 1 and report.packages == tuple(f"part-{i + 1}-of-{count}.mlpackage" for i in range(count))
    sizes = [
        (tmp_path / "cut" / package / "Data/com.apple.CoreML/weights/weight.bin").stat().st_size
        for package in report.packages
    ]
    # Rotary tables and what lies between weights come on top.
    assert max(sizes) < limit + 20_000
    tokens = token_ids(interpreted(tmp_path / "cut").vocab_size or 0)
    wanted = our_logits(folder, tokens)
    assert largest_error(run_calls(interpreted(tmp_path / "cut", "float32"), tokens), wanted) < 1e-4
    rounded = run_calls(interpreted(tmp_path / "cut"), tokens)
    assert largest_error(rounded, wanted) < 2e-2 * max(1.0, np.abs(wanted).max())
    # One state a part, of its own layers alone.
    heads = [
        Interpreter(tmp_path / "cut" / package).states("decode")["keyCache"].shape[1] for package in report.packages
    ]
    assert sum(size or 0 for size in heads) == sum(layer.kv_heads for layer in model.config.layers)


def test_layers_that_share_rows_stay_together(half: Callable[..., Path]) -> None:
    model = ModelTensors(half("afm"))
    whole = make_plan(model, OPTIONS)
    owner = model.config.last_writer
    shared = sum(
        size for role, size in whole.sizes.items() if role.startswith("layers.") and int(role.split(".")[1]) >= owner
    )
    limit = shared + whole.sizes["embed"] + whole.sizes["norm"]
    parts = make_plan(model, OPTIONS, limit).parts
    assert len(parts) > 1 and owner in parts[-1].layers
    with pytest.raises(InvalidOptionError, match=f"Layers {owner} to .* share keys and values and take"):
        make_plan(model, OPTIONS, shared)


def test_what_cannot_be_cut_is_refused(half: Callable[..., Path], tmp_path: Path) -> None:
    model = ModelTensors(half("llama-tied"))
    with pytest.raises(InvalidOptionError, match="Swift clients open one"):
        make_plan(model, ExportOptions(layout="swift"), 10_000)
    with pytest.raises(InvalidOptionError, match="cannot be cut further and take"):
        make_plan(model, OPTIONS, 10_000)
    limit = make_plan(model, OPTIONS).sizes["embed"] + layer_bytes(model) + 1000
    with pytest.raises(InvalidOptionError, match=r"give a folder without \.mlpackage"):
        export(model, tmp_path / "x.mlpackage", OPTIONS, False, SilentProgress(), max_bytes=limit)
    assert not list(tmp_path.iterdir())


def test_a_folder_of_parts_is_loaded_and_an_incomplete_one_is_not(
    half: Callable[..., Path], tmp_path: Path, tiny_folder: Path
) -> None:
    model = ModelTensors(tiny_folder)
    limit = make_plan(model, OPTIONS).sizes["embed"] + 2 * layer_bytes(model) + 1000
    export(model, tmp_path / "cut", OPTIONS, False, SilentProgress(), max_bytes=limit)
    prompt, wanted = [5, 6, 7, 8], russet.load(tiny_folder)
    loaded = russet.load(tmp_path / "cut")
    assert loaded.generate(prompt, max_tokens=4).tokens == wanted.generate(prompt, max_tokens=4).tokens
    (tmp_path / "cut" / "part-2-of-2.mlpackage").rename(tmp_path / "away.mlpackage")
    with pytest.raises(CheckpointError, match="holds 1 of 2 packages"):
        russet.load(tmp_path / "cut")
