"""What a quality file says of each prefill mode, for plots of score against time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from russet.bench import prefill_report, quality_report
from russet.bench.intervals import Estimate
from russet.bench.prefill_report import PrefillReport
from russet.bench.quality_report import QualityReport
from russet.bench.report_file import read_object
from russet.engine.errors import BenchmarkDataError


@dataclass(frozen=True, slots=True)
class TaskScores:
    """Scores of a model, known by the hash of its weights, in a task, by prefill mode.

    With `percent` they are shares from 0 to 1, of which more is better; else perplexities or bits.
    """

    name: str
    measure: str
    sha256: str | None
    scores: dict[str, Estimate]
    percent: bool = True


def read_scores(path: Path) -> list[TaskScores]:
    """The tasks of a file of `russet bench quality --json` or `russet bench prefill --json`.

    Raises BenchmarkDataError where it is neither.
    """
    schema = read_object(path).get("schema")
    readers: dict[Any, Any] = {
        quality_report.SCHEMA: lambda: _of_quality(quality_report.read_quality(path)),
        prefill_report.SCHEMA: lambda: _of_prefill(prefill_report.read_report(path)),
    }
    if schema not in readers:
        raise BenchmarkDataError(
            f"{path} has the schema {schema!r}; a file of `russet bench quality` or `russet bench prefill` is expected."
        )
    return readers[schema]()


def _of_prefill(report: PrefillReport) -> list[TaskScores]:
    found = []
    for task in report.finished:
        summaries = {name: task.summary(name).score for name in task.ran(report.strategies)}
        scores = {name: score for name, score in summaries.items() if score is not None}
        if scores:
            found.append(TaskScores(task.name, task.measure, report.model["sha256"], scores))
    return found


def _of_quality(report: QualityReport) -> list[TaskScores]:
    """A task's every figure that its strategies have; perplexities of one model, which share an axis, as well."""
    found: dict[tuple[str, str, str | None], TaskScores] = {}
    for task, by_subject in report.finished.items():
        for subject in report.subjects:
            if subject.name not in by_subject or not by_subject[subject.name].rows:
                continue
            scores = by_subject[subject.name]
            shares = {metric.name: metric.higher_is_better for metric in scores.metrics}
            for name, estimate in scores.estimates().items():
                key = (task, name, subject.sha256)
                held = found.setdefault(key, TaskScores(task, name, subject.sha256, {}, shares[name]))
                held.scores[subject.prefill] = estimate
    return [held for held in found.values() if len(held.scores) > 1]
