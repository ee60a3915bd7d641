"""`russet bench prefill --shape`: what strategies save on a model of random weights, where nothing can be scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from russet.bench.decode import Listener
from russet.bench.environment import environment
from russet.bench.prefill import add_row
from russet.bench.prefill_contenders import Contender
from russet.bench.prefill_report import PrefillReport, TaskResult
from russet.bench.prompts import check_lengths
from russet.bench.shapes import ShapeModel, random_prompt
from russet.engine.prefill.base import PromptTokens


@dataclass(frozen=True, slots=True)
class ShapePlan:
    """Random prompts of some lengths, each `repeat` times through every strategy, `generate` tokens decoded."""

    shape: str
    bits: int
    dtype: str | None
    prompt_lengths: tuple[int, ...]
    generate: int
    repeat: int


def new_report(model: ShapeModel, plan: ShapePlan, found: Sequence[Contender]) -> PrefillReport:
    """An empty report with its stamps. Raises InvalidOptionError where a prompt would not fit in the context."""
    check_lengths(plan.prompt_lengths, plan.generate, model.max_positions)
    stamp = {"name": model.name, "sha256": None}
    return PrefillReport(stamp, environment(), asdict(plan), [contender.name for contender in found])


def fill(
    report: PrefillReport,
    model: ShapeModel,
    plan: ShapePlan,
    found: Sequence[Contender],
    listen: Listener = lambda _: None,
) -> None:
    """Measure all lengths; what an exception interrupts stays in the report as far as it came."""
    for length in plan.prompt_lengths:
        result = TaskResult(f"random:{length}", measure="", binary=False, generate=plan.generate)
        report.tasks.append(result)
        prompt = PromptTokens(random_prompt(length, model.vocab_size))
        for number in range(plan.repeat):
            listen(f"{length} tokens, {number + 1} of {plan.repeat}")
            add_row(result, model, found, f"{result.name}/{number}", prompt)
