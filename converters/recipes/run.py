"""`russet recipe` in Python: open, check, train with checkpoints, measure before and after, write the model folder."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx

from russet.converters.recipes.base import Batch, Recipe
from russet.converters.recipes.card import write_card
from russet.converters.recipes.checkpoint import load_checkpoint, save_checkpoint
from russet.converters.recipes.corpus import Corpus
from russet.converters.recipes.curve import Curve
from russet.converters.recipes.listener import Listener, Silent
from russet.converters.recipes.measure import held_out, measure_quality, refuse_foreign_text
from russet.converters.recipes.memory import refuse_oversize
from russet.converters.recipes.source import Source, open_source, refuse_other_tokens
from russet.converters.recipes.speed import measure_speed
from russet.converters.recipes.text import token_folder
from russet.converters.recipes.trainer import Settings, State, Trainer
from russet.converters.writer import refuse_existing, staged_folder
from russet.engine.device import on_gpu
from russet.engine.errors import MissingDependencyError, OutputExistsError
from russet.engine.storage import make_folder, require_space
from russet.engine.timing import now
from russet.models.fingerprint import fingerprint
from russet.models.loading import DTYPES

CHECKPOINT = "checkpoint.safetensors"
CURVE = "curve.csv"
PLOT = "curve.png"
REPORT = "recipe.json"
CHECKED_TOKENS = 4096
STATE_ARRAYS = 4
"""Weights, two moments and perhaps an average: what a checkpoint holds, and while it is replaced twice."""

_logger = logging.getLogger("russet")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What is measured before and after: tokens of `val.bin`, tasks of `russet bench quality`, speed."""

    tokens: int = 65536
    data: Path | None = None
    tasks: tuple[str, ...] = ("wikitext", "lambada", "arc_easy", "piqa")
    limit: int = 100
    speed: bool = False


@dataclass
class Report:
    """What a run did. `before` and `after` are held-out losses and, where asked for, quality; `own` is the recipe's."""

    recipe: str
    source: str
    data: str
    options: dict[str, Any]
    objective: dict[str, float]
    settings: dict[str, Any]
    dtype: str
    device: str
    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    before: dict[str, Any] = field(default_factory=dict)
    after: dict[str, Any] = field(default_factory=dict)
    own: dict[str, Any] = field(default_factory=dict)
    teacher: str | None = None

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0


@dataclass
class Run:
    """A recipe on its way: what was asked for, and the folder where its checkpoints are until it is done."""

    recipe: Recipe
    src: Path
    dst: Path
    data: Path
    settings: Settings
    evaluation: Evaluation = field(default_factory=Evaluation)
    teacher: Path | None = None
    dtype: str | None = None
    resume: bool = False
    checkpoint_s: float = 300.0

    @property
    def folder(self) -> Path:
        return self.dst.with_name(f"{self.dst.name}.run")

    def __call__(self, listener: Listener | None = None) -> Report:
        """Train and write `dst`; nothing of it is there before the end, and the run's folder goes with it.

        Raises OutputExistsError, StorageError, TrainingDataError, TrainingError, InvalidOptionError, and what opening
        a model raises.
        """
        refuse_existing(self.dst)
        self._refuse_unfinished()
        try:
            return self._run(listener or Silent())
        except BaseException:
            with suppress(OSError):
                self.folder.rmdir()  # which an empty folder alone lets happen
            raise

    def _run(self, listener: Listener) -> Report:
        source = open_source(self.src)
        corpus = self._open(source)
        state, curve = self._state(corpus)
        report = self._report()
        batches = list(corpus.held_out_batches(self.settings.batch, self.evaluation.tokens))
        # Without held-out text, a little of the training text tells whether the source can read it.
        checked = batches or list(corpus.first(self.settings.batch, CHECKED_TOKENS))
        self._before(report, checked, bool(batches), listener)
        state = self._train(corpus, state, curve, listener)
        report.steps, report.tokens = state.step, state.step * self.settings.batch * self.settings.length
        report.seconds = curve.rows[-1]["seconds"] if curve.rows else 0.0
        self._finish(report, state, curve, batches, corpus, listener)
        return report

    def _refuse_unfinished(self) -> None:
        # A run that was killed before its first checkpoint leaves an empty folder.
        if self.folder.exists() and any(self.folder.iterdir()) and not self.resume:
            raise OutputExistsError(f"{self.folder} holds an unfinished run: go on with --resume, or delete it.")

    def _open(self, source: Source) -> Corpus:
        recipe = self.recipe
        dtype = DTYPES[self.dtype] if self.dtype else (mx.bfloat16 if on_gpu() else mx.float32)
        if self.teacher:
            refuse_other_tokens(self.src, self.teacher)
        recipe.open(source, dtype, open_source(self.teacher) if self.teacher else None)
        tokenizer = self.src / "tokenizer.json"
        found = tokenizer if tokenizer.exists() else None
        return Corpus(token_folder(self.data, self.src), self.settings.length, source.config.vocab_size, found)

    def _identity(self, corpus: Corpus) -> dict[str, Any]:
        """What has to be the same for a run to go on bit for bit."""
        recipe = self.recipe
        return {
            "recipe": recipe.name,
            "options": asdict(recipe.options),
            "objective": asdict(recipe.weights_of_loss),
            "settings": asdict(self.settings),
            "source": fingerprint(self.src),
            "teacher": fingerprint(self.teacher) if self.teacher else None,
            "data": corpus.fingerprint(),
            "dtype": str(recipe.dtype),
            "device": str(mx.default_device()),
            "mlx": mx.__version__,  # pyright: ignore[reportAttributeAccessIssue]
        }

    def _state(self, corpus: Corpus) -> tuple[State, Curve]:
        path = self.folder / CHECKPOINT
        self._known = self._identity(corpus)
        state = load_checkpoint(path, self._known) if path.exists() else None
        # Of a run that goes on as well: `weights`, `export` and `report` may read what is solved for at the start.
        self.recipe.calibrate(list(corpus.first(self.settings.batch, self.recipe.calibration_tokens)))
        params, averages = self.recipe.start(), bool(self.settings.ema)
        if state is not None:
            return state, Curve.read(self.folder / CURVE, state.step)
        refuse_oversize(self.recipe, params, self.settings.batch, self.settings.length, averages)
        state = State.first(params, averages)
        make_folder(self.folder)
        nbytes = sum(array.nbytes for array in state.params.values())
        require_space(self.folder, 2 * STATE_ARRAYS * nbytes)
        return state, Curve()

    def _report(self) -> Report:
        recipe = self.recipe
        return Report(
            recipe=recipe.name,
            source=self.src.name,
            data=self.data.name,
            options=asdict(recipe.options),
            objective=asdict(recipe.weights_of_loss),
            settings=asdict(self.settings),
            dtype=str(recipe.dtype).removeprefix("mlx.core."),
            device=_device(),
            teacher=self.teacher.name if self.teacher else None,
        )

    def _before(self, report: Report, batches: Sequence[Batch], kept: bool, listener: Listener) -> None:
        listener.task("Measuring the source")
        before = self.recipe.baseline(batches)
        refuse_foreign_text(before, self.recipe.source.config.vocab_size, self.data)
        if kept:
            report.before = before
        if self.evaluation.data is not None:
            report.before["quality"] = self._quality(self.src, listener)

    def _quality(self, folder: Path, listener: Listener) -> dict[str, Any]:
        """Of a model folder, or of the source where `folder` holds a predictor for it."""
        wanted = self.evaluation
        assert wanted.data is not None
        predicted = folder != self.src and not self.recipe.makes_model
        model, predictor = (self.src, folder) if predicted else (folder, None)
        return measure_quality(model, wanted.data, wanted.tasks, wanted.limit, listener, predictor)

    def _train(self, corpus: Corpus, state: State, curve: Curve, listener: Listener) -> State:
        settings, per_step = self.settings, self.settings.batch * self.settings.length
        trainer = Trainer(self.recipe, corpus, settings, state)
        begun = now() - (curve.rows[-1]["seconds"] if curve.rows else 0.0)
        saved = now()

        def each(step: int, terms: dict[str, float]) -> None:
            curve.add(step, step * per_step, now() - begun, terms)
            listener.step(step, per_step, terms)

        def due() -> bool:
            return now() - saved >= self.checkpoint_s

        listener.training(settings.steps, state.step, per_step)
        try:
            while trainer.state.step < settings.steps:
                trainer.run(each, stop=due)
                if trainer.state.step < settings.steps:
                    self._save(trainer.state, curve)
                    saved = now()
        except KeyboardInterrupt:
            self._save(trainer.state, curve)
            _logger.warning("%s holds the run as far as it came; --resume goes on from there", self.folder)
            raise
        finally:
            listener.finish()
        self._save(trainer.state, curve)
        return trainer.state

    def _save(self, state: State, curve: Curve) -> None:
        curve.save(self.folder / CURVE)
        save_checkpoint(state, self._known, self.folder / CHECKPOINT)

    def _finish(
        self,
        report: Report,
        state: State,
        curve: Curve,
        batches: Sequence[Batch],
        corpus: Corpus,
        listener: Listener,
    ) -> None:
        recipe, params = self.recipe, state.result
        listener.task("Measuring the result")
        if batches:
            report.after = held_out(recipe, params, batches)
            report.own = recipe.report(params, batches, lambda: None)
        nbytes = sum(array.nbytes for array in params.values())
        with staged_folder(self.dst, nbytes) as folder:
            recipe.write(folder, params)
            if self.evaluation.data is not None:
                listener.task("Measuring the result")
                report.after["quality"] = self._quality(folder, listener)
            if self.evaluation.speed:
                prompt: list[int] = next(corpus.first(1, 1)).tokens[0].tolist()  # type: ignore[assignment]
                report.before["speed"], report.after["speed"] = measure_speed(
                    self.src, folder, prompt, listener, predicts=not recipe.makes_model
                )
            curve.save(folder / CURVE)
            try:
                curve.plot(folder / PLOT, f"{recipe.name}, {report.source}")
            except MissingDependencyError as error:
                _logger.warning("no plot of the curve was drawn: %s", error)
            (folder / REPORT).write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")
            write_card(report, folder)
        shutil.rmtree(self.folder, ignore_errors=True)


def _device() -> str:
    info: Callable[[], dict[str, Any]] = mx.device_info
    name = info().get("device_name")
    return str(name or mx.default_device())
