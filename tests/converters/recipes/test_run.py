"""Whole runs: they learn, go on bit for bit, write a model that loads, and leave nothing when they fail."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import russet
from russet.converters.recipes import RECIPES, memory, recipe_class
from russet.converters.recipes import checkpoint as checkpoints
from russet.converters.recipes.base import Batch, Objective
from russet.converters.recipes.curve import Curve
from russet.converters.recipes.run import Run
from russet.converters.recipes.share_kv import ShareOptions
from russet.converters.recipes.source import Source
from russet.converters.recipes.trainer import Settings, State, make_step
from russet.engine.errors import (
    InvalidOptionError,
    OutputExistsError,
    StorageError,
    TrainingDataError,
    TrainingError,
    WeightsError,
)

MakeRun = Callable[..., Run]
SMALL = {
    "qat2": {"group": 32},
    "combined": {"group": 32},
    "kv_predictor": {"keep": 0.7, "trained": 1, "near": 4, "real": 0.2},
    "prune": {"keep": 0.7},
}
"""Settings that a tiny model can have."""


class Kill(BaseException):
    """What ends a run in the middle."""


class KillAt:
    """A listener that ends the run after a step."""

    def __init__(self, step: int, error: type[BaseException] = KeyboardInterrupt) -> None:
        self._step, self._error = step, error

    def task(self, label: str) -> None: ...
    def training(self, steps: int, done: int, tokens: int) -> None: ...
    def finish(self) -> None: ...

    def step(self, step: int, tokens: int, terms: dict[str, float]) -> None:
        if step == self._step:
            raise self._error


def tensors(folder: Path) -> dict[str, np.ndarray]:
    loaded = mx.load(str(folder / "model.safetensors"))
    assert isinstance(loaded, dict)
    return {name: np.array(array) for name, array in loaded.items()}


def steps_of(folder: Path) -> list[dict[str, float]]:
    rows = Curve.read(folder / "curve.csv", 1000).rows
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


@pytest.mark.parametrize("name", ["control", "relufy", "share_kv", "combined"])
def test_a_recipe_steps_down_its_loss(make_run: MakeRun, data: Path, name: str) -> None:
    """On one batch again and again, so that no other text hides what was learned."""
    (data / "train_01.bin").unlink()
    (data / "train_00.bin").write_bytes((data / "train_00.bin").read_bytes()[: 2 * 65])
    run = make_run(name, steps=15, options=_at_once(name), settings={"rate": 3e-4})
    report = run()
    curve = steps_of(run.dst)
    assert len(curve) == 15 and report.tokens == 15 * 64
    assert curve[-1]["loss"] < 0.95 * curve[0]["loss"]
    assert russet.load(run.dst).generate("ab", max_tokens=2, raw=True).tokens
    assert {path.name for path in run.dst.iterdir()} >= {"README.md", "recipe.json", "curve.csv", "tokenizer.json"}
    assert not run.folder.exists()


def _at_once(name: str) -> Any:
    """Options that change the architecture at the first step, so that the loss begins high."""
    kind = recipe_class(name).options_type
    changed = {"relufy": {"soften": 0.0, "penalty": 0.0}, "combined": {"group": 32, "soften": 0.0, "penalty": 0.0}}
    return kind(**changed.get(name, {}))


@pytest.mark.parametrize("error", [KeyboardInterrupt, Kill])
@pytest.mark.parametrize("name", RECIPES)
def test_a_run_goes_on_bit_for_bit(make_run: MakeRun, tmp_path: Path, name: str, error: type[BaseException]) -> None:
    given = {"options": recipe_class(name).options_type(**SMALL.get(name, {})), "settings": {"ema": 0.9}}
    whole = make_run(name, steps=6, **given)
    whole()
    # A checkpoint after every step; the kill comes in the middle of the run.
    cut = make_run(name, steps=6, **given, dst=tmp_path / "cut", checkpoint_s=0.0)
    with pytest.raises(error):
        cut(KillAt(4, error))
    assert not cut.dst.exists() and (cut.folder / "checkpoint.safetensors").exists()
    make_run(name, steps=6, **given, dst=tmp_path / "cut", resume=True)()
    (ours,), (theirs,) = ((folder.glob("*.safetensors")) for folder in (tmp_path / "cut", whole.dst))
    assert ours.read_bytes() == theirs.read_bytes()
    assert steps_of(tmp_path / "cut") == steps_of(whole.dst)
    assert _numbers(tmp_path / "cut") == _numbers(whole.dst)


def _numbers(folder: Path) -> dict[str, Any]:
    """What the report says, without the time that the run took."""
    return json.loads((folder / "recipe.json").read_text()) | {"seconds": 0}


def test_the_average_of_weights_is_what_is_written(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("control")()
    make_run("control", settings={"ema": 0.9}, dst=tmp_path / "averaged")()
    last, averaged = tensors(tmp_path / "dst"), tensors(tmp_path / "averaged")
    assert any(not np.array_equal(last[name], averaged[name]) for name in last)


def test_the_average_forgets_at_its_rate(source: Source, batches: list[Batch]) -> None:
    recipe = recipe_class("control")()
    recipe.open(source, mx.float32)
    state, settings = State.first(recipe.start(), averages=True), Settings(tokens=100, rate=1e-2, ema=0.9)
    step = make_step(recipe, settings)
    numbers = (mx.array(1e-2), mx.array(0.5), mx.array(1.0))
    params, _, average, _ = step(
        state.params, state.moments, state.average, batches[0].tokens, batches[0].labels, *numbers
    )
    for name, before in state.params.items():
        assert not mx.array_equal(params[name], before)
        assert mx.allclose(average[name], 0.9 * before + 0.1 * params[name], atol=1e-6), name


def test_another_run_is_not_resumed(make_run: MakeRun) -> None:
    with pytest.raises(KeyboardInterrupt):
        make_run("control", steps=6)(KillAt(2))
    with pytest.raises(OutputExistsError, match="--resume"):
        make_run("control", steps=6)()
    with pytest.raises(TrainingError, match="with settings"):
        make_run("control", steps=6, resume=True, settings={"rate": 1e-3})()
    with pytest.raises(TrainingError, match="with recipe 'control', not 'relufy'"):
        make_run("relufy", steps=6, resume=True, objective=Objective(kl=0.0, ce=1.0))()


def test_other_data_are_not_resumed(make_run: MakeRun, data: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        make_run("control", steps=6)(KillAt(2))
    (data / "train_00.bin").write_bytes((data / "train_00.bin").read_bytes()[:-2])
    with pytest.raises(TrainingError, match="with data"):
        make_run("control", steps=6, resume=True)()


def test_what_exists_is_left_alone(make_run: MakeRun, tmp_path: Path) -> None:
    (tmp_path / "dst").mkdir()
    with pytest.raises(OutputExistsError):
        make_run("control")()
    assert list((tmp_path / "dst").iterdir()) == []


def test_text_that_the_source_cannot_read_is_refused(make_run: MakeRun, tiny_folder: Path) -> None:
    """The tiny model's loss on text that it does not know is above a guess's."""
    with pytest.raises(TrainingDataError, match="worse than a guess"):
        make_run("control", src=tiny_folder)()


def test_damaged_weights_are_told_before_anything_is_trained(
    make_run: MakeRun, source_folder: Path, tmp_path: Path
) -> None:
    damaged = shutil.copytree(source_folder, tmp_path / "damaged")
    weights = mx.load(str(damaged / "model.safetensors"))
    assert isinstance(weights, dict)
    weights["model.norm.weight"] = weights["model.norm.weight"] * math.nan
    mx.save_safetensors(str(damaged / "model.safetensors"), weights)
    with pytest.raises(WeightsError, match=r"loss on .* is nan: its weights are damaged"):
        make_run("control", src=damaged)()


def test_a_full_disk_is_told_before_anything_is_trained(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=65 << 20))
    with pytest.raises(StorageError, match="are needed"):
        make_run("control")()


def test_a_disk_that_fills_up_leaves_the_last_checkpoint(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run("control", steps=6, checkpoint_s=0.0)
    saved, save = [], mx.save_safetensors

    def full(path: str, *rest: Any, **more: Any) -> None:
        if len(saved) == 2:
            Path(path).write_bytes(b"half")
            raise RuntimeError("[save] No space left on device")
        saved.append(path)
        save(path, *rest, **more)

    monkeypatch.setattr(checkpoints.mx, "save_safetensors", full)
    with pytest.raises(StorageError, match="No space left"):
        run()
    assert {path.name for path in run.folder.iterdir()} == {"checkpoint.safetensors", "curve.csv"}
    assert not run.dst.exists()


def test_a_diverged_run_says_so(make_run: MakeRun) -> None:
    with pytest.raises(TrainingError, match="diverged"):
        make_run("control", steps=6, settings={"rate": 1e30})()


def test_a_teacher_with_other_tokens_is_refused(make_run: MakeRun, source_folder: Path, tmp_path: Path) -> None:
    teacher = tmp_path / "teacher"
    shutil.copytree(source_folder, teacher)
    config = json.loads((teacher / "config.json").read_text()) | {"vocab_size": 300}
    (teacher / "config.json").write_text(json.dumps(config))
    weights = mx.load(str(source_folder / "model.safetensors"))
    assert isinstance(weights, dict)
    weights["model.embed_tokens.weight"] = mx.zeros((300, config["hidden_size"]))
    mx.save_safetensors(str(teacher / "model.safetensors"), weights)
    with pytest.raises(InvalidOptionError, match="The teacher has 300 tokens"):
        make_run("relufy", teacher=teacher)()


def test_only_readers_are_trained_where_that_is_asked_for(make_run: MakeRun, source_folder: Path) -> None:
    run = make_run("share_kv", options=ShareOptions(trained="readers"))
    run()
    before, after = tensors(source_folder), tensors(run.dst)
    changed = {name for name in after if not np.array_equal(after[name], before[name])}
    readers = {name for name in after if name.startswith(("model.layers.1.", "model.layers.2."))}
    assert changed == readers | {"model.norm.weight"}
    assert "model.layers.2.self_attn.k_proj.weight" not in after
    assert russet.load(run.dst).decoder.new_cache().slots.keys() == {0, 1}


def test_a_step_that_does_not_fit_is_refused(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "memory_bytes", lambda: 1_000_000)
    run = make_run("relufy")
    with pytest.raises(InvalidOptionError, match=r"A step of 4 x 16 tokens takes about .* lower --batch"):
        run()
    assert not run.dst.exists() and not run.folder.exists()


def test_a_fault_of_the_device_is_not_taken_for_a_full_disk(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(checkpoints.mx, "synchronize", broken)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        make_run("control")()


def test_every_recipe_is_there() -> None:
    for name in RECIPES:
        found = recipe_class(name)
        assert found.name == name and found.summary
