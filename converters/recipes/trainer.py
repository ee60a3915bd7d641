"""The training loop: one compiled step, checkpoints that survive a kill, a run that goes on bit for bit."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx

from russet.converters.recipes.base import Batch, Recipe, Teacher
from russet.converters.recipes.corpus import Corpus
from russet.converters.recipes.forward import decoder_of, head_of, hidden_rows
from russet.converters.recipes.optimizer import AdamW, Schedule
from russet.converters.recipes.source import Params
from russet.engine.device import on_gpu
from russet.engine.errors import TrainingError


@dataclass(frozen=True, slots=True)
class Settings:
    """How much is trained and how: sizes in tokens, the schedule, and what decides every random choice."""

    tokens: int
    batch: int = 16
    length: int = 1024
    rate: float = 3e-4
    warmup: float = 0.03
    decay: float = 0.01
    clip: float = 1.0
    ema: float = 0.0
    """Decay of the average of weights that is exported; 0 exports the last weights."""
    seed: int = 0

    @property
    def steps(self) -> int:
        return math.ceil(self.tokens / (self.batch * self.length))

    @property
    def schedule(self) -> Schedule:
        return Schedule(self.rate, self.steps, max(1, round(self.warmup * self.steps)))


@dataclass
class State:
    """Everything that a run is between two steps: float32 weights, their moments, their average, steps done."""

    params: Params
    moments: tuple[Params, Params]
    average: Params
    step: int = 0

    @classmethod
    def first(cls, params: Params, averages: bool) -> State:
        # Copies: MLX does not compile a step that both takes an array and closes over it, as the teacher may.
        params = {name: array + 0 for name, array in params.items()}
        mx.eval(params)
        zeros = [{name: mx.zeros_like(array) for name, array in params.items()} for _ in range(2)]
        return cls(params, (zeros[0], zeros[1]), dict(params) if averages else {})

    @property
    def result(self) -> Params:
        """The weights to export."""
        return self.average or self.params


Step = Callable[..., tuple[Params, tuple[Params, Params], Params, dict[str, mx.array]]]


def teacher_of(recipe: Recipe) -> Callable[[mx.array], Teacher]:
    """The teacher as a function of tokens, in the step's number format."""
    source, dtype = recipe.teacher, recipe.dtype
    arrays = {name: array.astype(dtype) for name, array in source.weights.items()}
    mx.eval(arrays)
    keep = bool(recipe.weights_of_loss.hidden)

    def teach(tokens: mx.array) -> Teacher:
        decoder = decoder_of(source.config, arrays, dtype)
        return Teacher(hidden_rows(decoder, tokens, keep=keep), head_of(decoder))

    return teach


def make_step(recipe: Recipe, settings: Settings) -> Step:
    """One step, compiled on a GPU: (params, moments, average, tokens, labels, rate, at, count) -> new ones."""
    teach = teacher_of(recipe) if recipe.needs_teacher else None
    adam = AdamW(decay=settings.decay, clip=settings.clip)

    def step(
        params: Params,
        moments: tuple[Params, Params],
        average: Params,
        tokens: mx.array,
        labels: mx.array,
        rate: mx.array,
        at: mx.array,
        count: mx.array,
    ) -> tuple[Params, tuple[Params, Params], Params, dict[str, mx.array]]:
        teacher = teach(tokens) if teach else None

        def loss(params: Params) -> tuple[mx.array, dict[str, mx.array]]:
            return recipe.loss(params, Batch(tokens, labels), teacher, at)

        (total, terms), gradients = mx.value_and_grad(loss)(params)
        params, moments, norm = adam.update(moments, params, gradients, rate, count, recipe.treatment)
        average = {name: settings.ema * old + (1 - settings.ema) * params[name] for name, old in average.items()}
        return params, moments, average, {"loss": total, **terms, "gradient": norm}

    # On a CPU, MLX compiles by calling a C++ compiler, which takes longer than it saves.
    return mx.compile(step) if on_gpu() else step


class Trainer:
    """Runs a recipe over a corpus from a state on; `each` hears of every step, in order, with its terms as numbers."""

    def __init__(self, recipe: Recipe, corpus: Corpus, settings: Settings, state: State) -> None:
        self.recipe, self.corpus, self.settings, self.state = recipe, corpus, settings, state
        self._step = make_step(recipe, settings)

    def run(self, each: Callable[[int, dict[str, float]], None], stop: Callable[[], bool] = lambda: False) -> None:
        """Go on until `stop` says so, or to the end. Raises TrainingError where the loss is not a number any more."""
        waiting: list[tuple[int, dict[str, mx.array]]] = []
        try:
            while self.state.step < self.settings.steps:
                state, terms = self._advance(self.state)
                mx.async_eval(state.params, state.moments, state.average, terms)
                self.state = state
                waiting.append((state.step, terms))
                # A step's numbers are read while the next one runs.
                if len(waiting) > 1:
                    self._tell(each, *waiting.pop(0))
                if stop():
                    break
        except KeyboardInterrupt:
            self._tell_all(each, waiting)
            raise
        self._tell_all(each, waiting)

    def _advance(self, state: State) -> tuple[State, dict[str, mx.array]]:
        settings = self.settings
        batch = self.corpus.batch(state.step, settings.batch, settings.seed)
        rate, at = settings.schedule.at(state.step), state.step / settings.steps
        params, moments, average, terms = self._step(
            state.params,
            state.moments,
            state.average,
            batch.tokens,
            batch.labels,
            mx.array(rate),
            mx.array(at),
            mx.array(float(state.step + 1)),
        )
        return State(params, moments, average, state.step + 1), {**terms, "rate": mx.array(rate)}

    def _tell_all(
        self, each: Callable[[int, dict[str, float]], None], waiting: list[tuple[int, dict[str, mx.array]]]
    ) -> None:
        for step, terms in waiting:
            self._tell(each, step, terms)

    def _tell(self, each: Callable[[int, dict[str, float]], None], step: int, terms: dict[str, mx.array]) -> None:
        numbers = {name: float(term.item()) for name, term in terms.items()}  # type: ignore[arg-type]
        if not math.isfinite(numbers["loss"]):
            raise TrainingError(
                f"The loss is {numbers['loss']} at step {step}: the run diverged; start it again with a lower --rate."
            )
        each(step, numbers)
