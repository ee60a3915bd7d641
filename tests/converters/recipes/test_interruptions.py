"""What a run refuses, what it says of another run's checkpoint, and what it leaves when it ends early."""

from __future__ import annotations

import errno
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from russet.converters.recipes import measure, speed
from russet.converters.recipes.base import Batch, Objective
from russet.converters.recipes.curve import Curve
from russet.converters.recipes.kv_predictor import PredictorOptions
from russet.converters.recipes.listener import Silent
from russet.converters.recipes.qat2 import QatOptions
from russet.converters.recipes.relufy import Relufy, ReluOptions
from russet.converters.recipes.run import Evaluation, Run
from russet.converters.recipes.source import open_source
from russet.converters.recipes.trainer import teacher_of
from russet.engine.errors import (
    BenchmarkDataError,
    CheckpointError,
    InvalidOptionError,
    OutputExistsError,
    RussetError,
    StorageError,
    TrainingDataError,
    TrainingError,
)
from russet.models.loading import load_decoder

MakeRun = Callable[..., Run]
GOLDEN = Path(__file__).parents[2] / "golden"


class Interrupt:
    """A listener that ends the run at a step, or where something is measured."""

    def __init__(self, step: int = 0) -> None:
        self._step = step

    def task(self, label: str) -> None:
        if not self._step:
            raise KeyboardInterrupt

    def training(self, steps: int, done: int, tokens: int) -> None: ...
    def finish(self) -> None: ...

    def step(self, step: int, tokens: int, terms: dict[str, float]) -> None:
        if step == self._step:
            raise KeyboardInterrupt


def test_nothing_is_left_before_the_first_checkpoint(make_run: MakeRun) -> None:
    run = make_run("control")
    with pytest.raises(KeyboardInterrupt):
        run(Interrupt())
    assert not run.folder.exists()
    # A kill takes no folder with it, and the run can be started anew all the same.
    run.folder.mkdir()
    run()
    assert run.dst.exists() and not run.folder.exists()


def test_an_interruption_says_how_to_go_on(make_run: MakeRun, caplog: pytest.LogCaptureFixture) -> None:
    run = make_run("control", steps=6)
    with caplog.at_level(logging.WARNING, "russet"), pytest.raises(KeyboardInterrupt):
        run(Interrupt(2))
    assert f"{run.folder} holds the run as far as it came; --resume goes on from there" in caplog.messages
    with pytest.raises(OutputExistsError, match="--resume"):
        make_run("control", steps=6)()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_result_is_the_same_file_whether_it_was_interrupted_or_not(
    make_run: MakeRun, tmp_path: Path, dtype: str
) -> None:
    assert make_run("relufy", steps=4, dtype=dtype)().dtype == dtype
    with pytest.raises(KeyboardInterrupt):
        make_run("relufy", steps=4, dst=tmp_path / "cut", dtype=dtype)(Interrupt(2))
    kept = mx.load(str(tmp_path / "cut.run" / "checkpoint.safetensors"))
    assert isinstance(kept, dict) and {array.dtype for array in kept.values()} == {mx.float32}, (
        "only the step is in 16 bits"
    )
    make_run("relufy", steps=4, dst=tmp_path / "cut", resume=True, dtype=dtype)()
    files = [tmp_path / name / "model.safetensors" for name in ("dst", "cut")]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("text", ["step,tokens,seconds,loss\n1,64,x,2\n", "loss\n2\n", "step,seconds\n1,2,3\n"])
def test_a_damaged_curve_is_named_and_can_be_done_without(make_run: MakeRun, text: str) -> None:
    run = make_run("control", steps=4)
    with pytest.raises(KeyboardInterrupt):
        run(Interrupt(2))
    (run.folder / "curve.csv").write_text(text)
    with pytest.raises(CheckpointError, match=r"curve\.csv is no curve of a recipe"):
        make_run("control", steps=4, resume=True)()
    (run.folder / "curve.csv").unlink()
    assert make_run("control", steps=4, resume=True)().steps == 4


def test_a_curve_that_does_not_fit_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    curve = Curve()
    curve.add(1, 64, 0.5, {"loss": 2.0})
    curve.save(tmp_path / "curve.csv")
    before = (tmp_path / "curve.csv").read_text()

    def full(self: Path, *_: object, **__: object) -> int:
        self.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    curve.add(2, 128, 1.0, {"loss": 1.0})
    with pytest.raises(StorageError, match="is full"):
        curve.save(tmp_path / "curve.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["curve.csv"]
    assert (tmp_path / "curve.csv").read_text() == before


def test_the_setting_that_differs_is_named_alone(make_run: MakeRun) -> None:
    with pytest.raises(KeyboardInterrupt):
        make_run("control", steps=6)(Interrupt(2))
    with pytest.raises(TrainingError, match=r"a run with settings rate 0\.003, not 0\.001; resume it"):
        make_run("control", steps=6, resume=True, settings={"rate": 1e-3})()
    with pytest.raises(TrainingError, match=r"a run with objective ce 1\.0, not 0\.5; resume it"):
        make_run("control", steps=6, resume=True, objective=Objective(kl=0.0, ce=0.5))()


def test_other_options_are_another_run(make_run: MakeRun) -> None:
    with pytest.raises(KeyboardInterrupt):
        make_run("relufy", steps=6, options=ReluOptions(sparsity=0.7))(Interrupt(2))
    with pytest.raises(TrainingError, match=r"a run with options sparsity 0\.7, not 0\.8; resume it"):
        make_run("relufy", steps=6, resume=True, options=ReluOptions(sparsity=0.8))()


@pytest.mark.parametrize("missing", ["folder", "task", "file"])
def test_an_evaluation_that_cannot_be_made_leaves_nothing(make_run: MakeRun, tmp_path: Path, missing: str) -> None:
    tasks = ("nosuch",) if missing == "task" else ("lambada",)
    folder = tmp_path / "nowhere" if missing == "folder" else tmp_path
    run = make_run("control", evaluation=Evaluation(64, folder, tasks))
    with pytest.raises(RussetError) as told:
        run()
    assert isinstance(told.value, InvalidOptionError if missing == "task" else BenchmarkDataError)
    assert not run.dst.exists() and not run.folder.exists()


@pytest.mark.parametrize("name", ["control", "kv_predictor"])
def test_quality_is_measured_before_and_after(make_run: MakeRun, tmp_path: Path, name: str) -> None:
    """Of a predictor, with prompts that it predicts."""
    rows = [{"query": "ab " * size, "answer": ["end"]} for size in (20, 30)]
    (tmp_path / "lambada.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = PredictorOptions(keep=0.34) if name == "kv_predictor" else None
    report = make_run(name, options=options, evaluation=Evaluation(64, tmp_path, ("lambada",)))()
    before, after = (side["quality"]["lambada"]["perplexity"]["value"] for side in (report.before, report.after))
    assert before > 0 and after > 0 and before != after
    assert "| lambada, perplexity |" in (tmp_path / "dst" / "README.md").read_text()


@pytest.mark.parametrize("name", ["relufy", "kv_predictor"])
def test_speed_is_measured_by_turns_where_asked_for(
    make_run: MakeRun, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "GENERATE", 4)
    heard: list[str] = []
    listener = Silent()
    listener.task = heard.append  # type: ignore[method-assign]
    options = PredictorOptions(keep=0.34) if name == "kv_predictor" else None
    report = make_run(name, options=options, evaluation=Evaluation(64, speed=True))(listener)
    for side in (report.before, report.after):
        assert side["speed"].keys() == {"prompt_tokens", "prefill_tps", "decode_tps"}
        assert all(rate > 0 for rate in side["speed"].values())
    assert [each for each in heard if each.startswith("Timing")][2:4] == ["Timing, russet, 1 of 5"] * 2
    card = (tmp_path / "dst" / "README.md").read_text()
    assert "| tokens a second, 16 tokens of prompt | source | result | ratio |" in card and "| decode | " in card


@pytest.mark.parametrize("name", ["control", "qat2", "kv_predictor"])
@pytest.mark.parametrize("family", ["gemma3", "openelm", "qwen2", "qwen3"])
def test_what_a_family_cannot_have_is_told_before_it_is_trained(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, name: str
) -> None:
    """OpenELM has one matrix for queries, keys and values, and widths that MLX's groups do not divide."""
    monkeypatch.setattr(measure, "CHANCE", 99.0)
    folder = tmp_path / "small"
    folder.mkdir()
    np.random.default_rng(0).integers(0, 70, 500).astype("<u2").tofile(folder / "val.bin")
    np.random.default_rng(1).integers(0, 70, 900).astype("<u2").tofile(folder / "a.bin")
    options = QatOptions(group=0, embedding_bits=16) if name == "qat2" else None
    run = make_run(name, options=options, src=GOLDEN / family, data=folder, steps=2)
    if name == "qat2" and family != "openelm":
        with pytest.raises(InvalidOptionError, match="do not fill words of 16"):
            run()
        assert not run.folder.exists()
    else:
        assert run().steps == 2 and run.dst.exists()


def test_foreign_text_is_told_without_held_out_text_too(make_run: MakeRun, data: Path, tiny_folder: Path) -> None:
    (data / "val.bin").unlink()
    with pytest.raises(TrainingDataError, match="worse than a guess"):
        make_run("control", src=tiny_folder)()
    assert make_run("control")().before == {}


def test_a_teacher_with_another_tokenizer_is_refused(make_run: MakeRun, source_folder: Path, tmp_path: Path) -> None:
    teacher = shutil.copytree(source_folder, tmp_path / "teacher")
    make_run("relufy", teacher=teacher, dst=tmp_path / "alike")()
    tokenizer = json.loads((teacher / "tokenizer.json").read_text())
    words = list(tokenizer["model"]["vocab"])
    ids = tokenizer["model"]["vocab"]
    ids[words[0]], ids[words[1]] = ids[words[1]], ids[words[0]]
    (teacher / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(InvalidOptionError, match="has another tokenizer than"):
        make_run("relufy", teacher=teacher)()
    (teacher / "tokenizer.json").write_text("{")
    with pytest.raises(RussetError, match="is damaged"):
        make_run("relufy", teacher=teacher)()


def test_the_teacher_that_is_named_teaches(source_folder: Path, tmp_path: Path, batches: list[Batch]) -> None:
    teacher = shutil.copytree(source_folder, tmp_path / "teacher")
    arrays = mx.load(str(source_folder / "model.safetensors"))
    assert isinstance(arrays, dict)
    arrays["model.norm.weight"] = arrays["model.norm.weight"] * 3
    mx.save_safetensors(str(teacher / "model.safetensors"), arrays)
    recipe = Relufy()
    recipe.open(open_source(source_folder), mx.float32, open_source(teacher))
    tokens = batches[0].tokens
    taught = teacher_of(recipe)(tokens)
    decoder = load_decoder(teacher, "float32")
    expected = decoder.extend(tokens[:1], decoder.new_cache(), logits=tokens.shape[1])
    assert mx.allclose(taught.rows.final[:1] @ taught.head.T, expected, atol=1e-4)


@pytest.mark.parametrize("name", ["control", "relufy", "kv_predictor"])
def test_a_loss_of_nothing_is_refused(make_run: MakeRun, name: str) -> None:
    options = PredictorOptions(l1=0.0) if name == "kv_predictor" else None
    with pytest.raises(InvalidOptionError, match="nothing to learn"):
        make_run(name, options=options, objective=Objective(kl=0.0, ce=0.0, hidden=0.0))()
    make_run("kv_predictor", objective=Objective(kl=0.0))()
