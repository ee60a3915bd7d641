"""`russet bench quality`: every task of a model through every strategy, into a report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from russet.bench.decode import Listener
from russet.bench.environment import model_hash
from russet.bench.prefill_contenders import Contender
from russet.bench.quality import fill, new_scores, prompt_length
from russet.bench.quality_report import QualityReport, Subject
from russet.bench.tasks.items import QualityTask

if TYPE_CHECKING:
    from russet.engine.api import Model


@dataclass(frozen=True, slots=True)
class Plan:
    """Which rows: the first `limit` of every task, from the files in `data`; `kv_bits` are the caches to score with."""

    tasks: Sequence[QualityTask]
    data: Path
    limit: int
    kv_bits: Sequence[int] = (16,)


def run(
    report: QualityReport,
    model: Model,
    name: str,
    plan: Plan,
    found: Sequence[Contender],
    listen: Listener = lambda _: None,
) -> None:
    """Score a model, called `name` in the report; what an exception interrupts stays there as far as it came.

    Raises BenchmarkDataError where a task's data are missing, before anything is computed.
    """
    for task in plan.tasks:
        next(iter(task.items(plan.data, prompt_length(model))), None)
    sha256, card = model_hash(model.path), model.card
    for task, kv_bits, contender in product(plan.tasks, plan.kv_bits, found):
        subject = Subject(name, contender.name, sha256, card, kv_bits)
        scores = new_scores(task)
        report.add(subject, scores)
        model.kv_bits = kv_bits
        fill(scores, task, model, plan.data, plan.limit, contender, listen=_listener(listen, subject.name))


def _listener(listen: Listener, subject: str) -> Listener:
    return lambda text: listen(f"{subject}: {text}")
