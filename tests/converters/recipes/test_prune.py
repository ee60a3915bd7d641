"""Plain layer pruning: the model that `layer_pruned` shows, as a folder of its own, and a step down the loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from russet.converters.recipes.base import Batch
from russet.converters.recipes.optimizer import AdamW
from russet.converters.recipes.prune import Prune, PruneOptions
from russet.converters.recipes.source import Source
from russet.converters.recipes.trainer import teacher_of
from russet.engine.errors import UnsupportedModelError
from russet.models.layer_pruned import layer_pruned
from russet.models.loading import load_decoder


def opened(source: Source) -> Prune:
    recipe = Prune(PruneOptions(keep=0.5))
    recipe.open(source, mx.float32)
    return recipe


def test_it_starts_from_the_kept_layers(
    source: Source, batches: list[Batch], tmp_path: Path, written: Callable[[Any, Path], Path]
) -> None:
    recipe = opened(source)
    assert recipe.kept == (0, 2)
    folder, tokens = written(recipe.export(recipe.start()), tmp_path / "m"), batches[0].tokens[:1]
    view = layer_pruned(load_decoder(source.folder, "float32"), recipe.kept)
    ours, theirs = (d.extend(tokens, d.new_cache(), logits=8) for d in (load_decoder(folder, "float32"), view))
    assert ours is not None and theirs is not None and mx.allclose(ours, theirs, atol=1e-5)


def test_steps_go_down_the_loss(source: Source, batches: list[Batch]) -> None:
    recipe, losses = opened(source), []
    params, teacher = recipe.start(), teacher_of(recipe)(batches[0].tokens)
    step = mx.value_and_grad(lambda params: recipe.loss(params, batches[0], teacher, mx.array(0.0))[0])
    zeros = {name: mx.zeros_like(array) for name, array in params.items()}
    moments = (zeros, dict(zeros))
    for count in range(3):
        loss, gradients = step(params)
        losses.append(loss.item())
        rate, at = mx.array(3e-3), mx.array(count + 1.0)
        params, moments, _ = AdamW().update(moments, params, gradients, rate, at, recipe.treatment)
    assert losses[0] > losses[1] > losses[2]


def test_layers_that_are_described_one_by_one_are_refused(source: Source) -> None:
    raw = {**source.raw, "russet": {"kv_source": [None, 0, 0]}}
    with pytest.raises(UnsupportedModelError, match="describes the layers of this llama model one by one"):
        opened(replace(source, raw=raw))
