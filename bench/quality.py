"""What a model knows and can do: tasks scored row by row, exactly or behind a prefill strategy.

`evaluate` is the whole of it in Python: two models, or one model before and after something was done to it, are
compared by `compare` on the rows that both have.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from russet.bench.decode import Listener
from russet.bench.intervals import Estimate
from russet.bench.prefill_contenders import EXACT, Contender
from russet.bench.quality_metrics import Metric, Values
from russet.bench.quality_outcomes import Outcome, outcomes
from russet.bench.tasks.base import TokenCount
from russet.bench.tasks.items import Continuations, Item, QualityTask, RunningText
from russet.bench.tasks.quality import parse_quality_task
from russet.engine.device import prefill_chunk
from russet.engine.prefill.exact import Exact

if TYPE_CHECKING:
    from russet.engine.api import Model

BLOCK = 64
BLOCK_CHARACTERS = 40_000
"""Items that are put together in passes, and their characters, at most (but for a longer item): an interruption leaves
whole blocks. So many characters are some 10 000 tokens, 40 s on two CPU cores with SmolLM2-135M."""


@dataclass
class Scores:
    """What one model made of one task: row -> outcome. `skipped` rows did not fit in its context."""

    task: str
    definition: str
    metrics: tuple[Metric, ...]
    rows: dict[str, Outcome] = field(default_factory=dict)
    skipped: int = 0

    def estimates(self) -> dict[str, Estimate]:
        """Metric -> value with its 95 % interval, over all rows; without those that the rows do not tell."""
        rows = [row.values for row in self.rows.values()]
        return {metric.name: metric.estimate(rows) for metric in self.metrics if metric.applies(rows)}

    @property
    def fell_back(self) -> list[str]:
        """Why another prefill ran than was asked for, a sentence for each row where one did."""
        return [row.note for row in self.rows.values() if row.note]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Ours beside theirs in one metric: a difference, or for a perplexity a ratio, over `rows` rows that both have."""

    metric: Metric
    rows: int
    estimate: Estimate


def evaluate(
    model: Model,
    tasks: Sequence[str | QualityTask],
    data: Path,
    limit: int | None = None,
    prefill: Contender | None = None,
    *,
    pass_rows: int | None = None,
    listen: Listener = lambda _: None,
) -> dict[str, Scores]:
    """Task -> scores of its first `limit` rows, from the files in the folder `data`.

    `tasks` are names such as "piqa" (docs/benchmarks.md lists them) or tasks of one's own. `pass_rows` bounds the rows
    of one exact pass, `prefill_chunk` unless given; what it is changes results by rounding alone. Everything is greedy
    or known beforehand, so the same call gives the same numbers on the same machine. `listen` hears how far it is.
    Raises InvalidOptionError for a task that does not exist, BenchmarkDataError where a file is missing or damaged.
    """
    found = {task.name: new_scores(task) for task in chosen(tasks)}
    for task in chosen(tasks):
        fill(found[task.name], task, model, data, limit, prefill, pass_rows=pass_rows, listen=listen)
    return found


def chosen(tasks: Sequence[str | QualityTask]) -> list[QualityTask]:
    """The tasks that names stand for."""
    return [parse_quality_task(task) if isinstance(task, str) else task for task in tasks]


def new_scores(task: QualityTask) -> Scores:
    """No rows yet."""
    return Scores(task.name, task.definition, task.metrics)


def fill(
    scores: Scores,
    task: QualityTask,
    model: Model,
    data: Path,
    limit: int | None = None,
    prefill: Contender | None = None,
    *,
    pass_rows: int | None = None,
    listen: Listener = lambda _: None,
) -> None:
    """Score a task's rows; what an exception interrupts stays in `scores` as far as it came."""
    contender = prefill or Contender(EXACT, Exact())
    rows = pass_rows or prefill_chunk(getattr(model.decoder, "packed", False))
    items = islice(task.items(data, prompt_length(model)), limit)
    most = f" of at most {limit}" if limit else ""
    for block in _blocks(items):
        for item, outcome in zip(block, outcomes(model, contender, block, rows), strict=True):
            if outcome is None:
                scores.skipped += 1
            else:
                scores.rows[item.id] = outcome
            listen(f"{task.name}, {len(scores.rows) + scores.skipped} rows{most}")


def _blocks(items: Iterator[Item]) -> Iterator[list[Item]]:
    block: list[Item] = []
    characters = 0
    for item in items:
        block.append(item)
        characters += _characters(item)
        if len(block) == BLOCK or characters >= BLOCK_CHARACTERS:
            yield block
            block, characters = [], 0
    if block:
        yield block


def _characters(item: Item) -> int:
    """The text that is scored together with other items'."""
    if isinstance(item, Continuations):
        return sum(len(item.context) + len(text) for text in item.continuations)
    return len(item.text) if isinstance(item, RunningText) else 0


def prompt_length(model: Model) -> TokenCount:
    """How many tokens a prompt becomes for a model, chat template included."""
    return lambda prompt: len(model.prepare(prompt).tokens)


def compare(ours: Scores, theirs: Scores) -> list[Comparison]:
    """Every metric that both tell, over the rows that both have; nothing where there are none."""
    shared = [row for row in ours.rows if row in theirs.rows]
    left, right = _values(ours, shared), _values(theirs, shared)
    found = []
    for metric in ours.metrics:
        if not metric.applies(left) or not metric.applies(right):
            continue
        estimate = metric.compare(left, right)
        if estimate is not None:
            found.append(Comparison(metric, len(shared), estimate))
    return found


def _values(scores: Scores, rows: list[str]) -> list[Values]:
    return [scores.rows[row].values for row in rows]
