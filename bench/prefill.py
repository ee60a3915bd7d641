"""`russet bench prefill`: every strategy on the same rows, taking turns, scored and timed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from russet.bench.decode import Listener
from russet.bench.environment import environment, model_hash
from russet.bench.prefill_contenders import Contender
from russet.bench.prefill_report import PrefillReport, RowResult, TaskResult
from russet.bench.prefill_run import RowRun, fits, run
from russet.bench.tasks.base import Example, Task
from russet.engine.prefill.base import PromptTokens

if TYPE_CHECKING:
    from russet.bench.shapes import ShapeModel
    from russet.engine.api import Model

WARM_UP_TOKENS = 4


@dataclass(frozen=True, slots=True)
class Plan:
    """Which rows: the first `limit` of every task, from the files in `data`."""

    tasks: tuple[Task, ...]
    data: Path
    limit: int


def new_report(model: Model, plan: Plan, found: Sequence[Contender], dtype: str | None = None) -> PrefillReport:
    """An empty report with its stamps."""
    settings = {"tasks": [task.name for task in plan.tasks], "limit": plan.limit, "dtype": dtype}
    stamp = {"name": model.name, "sha256": model_hash(model.path)}
    return PrefillReport(stamp, environment(), settings, [contender.name for contender in found])


def fill(
    report: PrefillReport, model: Model, plan: Plan, found: Sequence[Contender], listen: Listener = lambda _: None
) -> None:
    """Measure all rows; what an exception interrupts stays in the report as far as it came.

    The first row of every task comes first, then every second row: stopped early, all tasks have as many rows.
    Raises BenchmarkDataError where a task's data are missing, before anything is measured.
    """

    def count(prompt: object) -> int:
        return len(model.prepare(prompt).tokens)  # type: ignore[arg-type]

    results = [TaskResult(task.name, task.measure, task.binary, task.generate) for task in plan.tasks]
    examples = [islice(task.examples(plan.data, count), plan.limit) for task in plan.tasks]
    report.tasks.extend(results)
    for number, step in enumerate(_together(examples)):
        for index, example in step:
            listen(f"{results[index].name}, row {number + 1} of at most {plan.limit}")
            _add(results[index], model, plan.tasks[index], example, found)


def _together(examples: Sequence[Iterator[Example]]) -> Iterator[list[tuple[int, Example]]]:
    """(task's index, row) of all first rows, then of all second ones, until no task has more."""
    while step := [(i, row) for i, rows in enumerate(examples) if (row := next(rows, None)) is not None]:
        yield step


def _add(result: TaskResult, model: Model, task: Task, example: Example, found: Sequence[Contender]) -> None:
    prompt = model.prepare(example.prompt)
    if all(fits(model, contender.prefill, prompt, task.generate) for contender in found):
        add_row(result, model, found, example.id, prompt, lambda text: task.score(text, example.answers))
    else:
        result.skipped += 1


def add_row(
    result: TaskResult,
    model: Model | ShapeModel,
    found: Sequence[Contender],
    row: str,
    prompt: PromptTokens,
    score: Callable[[str], float | None] = lambda _: None,
) -> None:
    """One prompt through every strategy, in an order that is reversed with every row, warmed up before the first."""
    if not result.rows:
        for contender in found:
            run(model, contender.prefill, prompt, min(WARM_UP_TOKENS, result.generate))
    runs: dict[str, RowRun] = {}
    for contender in found if len(result.rows) % 2 == 0 else reversed(found):
        measured = _measured(model, contender, prompt, result.generate)
        runs[contender.name] = replace(measured, score=score(measured.text))
    result.rows.append(RowResult(row, len(prompt.tokens), {each.name: runs[each.name] for each in found}))


def _measured(model: Model | ShapeModel, contender: Contender, prompt: PromptTokens, generate: int) -> RowRun:
    if contender.primed:
        run(model, contender.prefill, prompt, 1)
    return run(model, contender.prefill, prompt, generate)
