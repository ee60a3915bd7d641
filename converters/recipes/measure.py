"""What a model scores before and after a recipe: losses on held-out text, and tasks of `russet bench quality`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from russet.converters.recipes.listener import Listener
from russet.converters.recipes.source import Params
from russet.engine.errors import TrainingDataError, WeightsError

if TYPE_CHECKING:
    from russet.converters.recipes.base import Batch, Recipe

CHANCE = 0.5
"""How many nats above a uniform guess a source's loss may be before its tokens count as another tokenizer's."""


def held_out(recipe: Recipe, params: Params, batches: Sequence[Batch]) -> dict[str, float]:
    """The terms of a recipe's loss at the end of training, means over the batches, and `perplexity` where they hold a
    cross-entropy."""
    from russet.converters.recipes.trainer import teacher_of

    teach = teacher_of(recipe) if recipe.needs_teacher else None

    def terms(batch: Batch) -> dict[str, mx.array]:
        return recipe.loss(params, batch, teach(batch.tokens) if teach else None, mx.array(1.0))[1]

    return means(terms, batches)


def means(terms: Callable[[Batch], dict[str, mx.array]], batches: Sequence[Batch]) -> dict[str, float]:
    """Each term's mean over batches, weighted by their rows."""
    sums: dict[str, float] = {}
    rows = 0
    for batch in batches:
        count = batch.tokens.shape[0]
        for name, term in terms(batch).items():
            sums[name] = sums.get(name, 0.0) + float(term.item()) * count  # type: ignore[arg-type]
        rows += count
    found = {name: total / rows for name, total in sums.items()}
    return found | ({"perplexity": math.exp(found["ce"])} if "ce" in found else {})


def refuse_foreign_text(before: dict[str, Any], vocab_size: int, data: Path) -> None:
    """Raise TrainingDataError where the source predicts the text worse than a guess: its ids mean something else.

    Raises WeightsError where its loss is no number.
    """
    loss, guess = before["ce"], math.log(vocab_size)
    if not math.isfinite(loss):
        raise WeightsError(f"The source's loss on {data} is {loss}: its weights are damaged; fetch or convert it anew.")
    if loss > guess + CHANCE:
        raise TrainingDataError(
            f"The source's loss on {data} is {loss:.2f}, worse than a guess ({guess:.2f}): tokenise the text with the "
            "model's own tokenizer, or take a source that is trained."
        )


def measure_quality(
    folder: Path, data: Path, tasks: Sequence[str], limit: int, listener: Listener, predictor: Path | None = None
) -> dict[str, dict[str, dict[str, float]]]:
    """Task -> metric -> value with its 95 % interval, by `russet bench quality`.

    With `predictor`, its folder, prompts are prefilled by KV Prediction.
    """
    from russet.bench.prefill_contenders import Contender
    from russet.bench.quality import evaluate
    from russet.engine.api import load
    from russet.engine.prefill.kv_prediction import KVPrediction

    contender = None if predictor is None else Contender(KVPrediction.name, KVPrediction(predictor))
    scores = evaluate(load(folder), tasks, data, limit, contender, listen=listener.task)
    return {
        task: {
            name: {"value": estimate.value, "low": estimate.low, "high": estimate.high}
            for name, estimate in found.estimates().items()
        }
        for task, found in scores.items()
    }
