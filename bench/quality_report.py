"""The result of `russet bench quality` as data: every row of every model and strategy, and what follows from them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from russet.bench.prefill_contenders import EXACT
from russet.bench.quality import Comparison, Scores, compare
from russet.bench.quality_metrics import Metric
from russet.bench.quality_outcomes import Outcome
from russet.bench.report_file import read_report_file

SCHEMA = "russet-bench-quality/1"
"""Changes its number whenever a field changes its meaning or goes; quality.schema.json describes it."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What is scored: a model behind a prefill strategy, with stored keys and values of so many bits.

    `sha256` is that of its weights, `description` its card.
    """

    model: str
    prefill: str
    sha256: str | None = None
    description: str = ""
    kv_bits: int = 16

    @property
    def name(self) -> str:
        rows = "" if self.kv_bits == 16 else f" kv{self.kv_bits}"
        return f"{self.model}{rows}" + ("" if self.prefill == EXACT else f" {self.prefill}")


@dataclass
class QualityReport:
    """Filled while the benchmark runs, so that what an interruption leaves is a report as well.

    `scores` has task -> subject's name -> scores.
    """

    environment: dict[str, Any]
    settings: dict[str, Any]
    subjects: list[Subject] = field(default_factory=list)
    scores: dict[str, dict[str, Scores]] = field(default_factory=dict)
    started: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    interrupted: bool = False

    def add(self, subject: Subject, scores: Scores) -> None:
        """A subject's scores in a task, to be filled."""
        if subject not in self.subjects:
            self.subjects.append(subject)
        self.scores.setdefault(scores.task, {})[subject.name] = scores

    @property
    def finished(self) -> dict[str, dict[str, Scores]]:
        """The tasks of which at least one subject has a row."""
        return {task: found for task, found in self.scores.items() if any(each.rows for each in found.values())}

    def against(self, subject: Subject) -> Subject | None:
        """What a subject is compared with.

        A strategy with exact prefill of the same model and cache, an int8 cache with one of 16 bits, and otherwise a
        model with the first subject.
        """
        if subject.prefill != EXACT:
            return self._exact(subject.model, subject.kv_bits)
        if subject.kv_bits != 16 and (plain := self._exact(subject.model, 16)) is not None:
            return plain
        return self.subjects[0] if subject != self.subjects[0] else None

    def _exact(self, model: str, kv_bits: int) -> Subject | None:
        wanted = (model, EXACT, kv_bits)
        return next((one for one in self.subjects if (one.model, one.prefill, one.kv_bits) == wanted), None)

    def comparisons(self, task: str, subject: Subject) -> tuple[Subject | None, list[Comparison]]:
        """What a subject is compared with, and how it compares."""
        found, other = self.scores[task], self.against(subject)
        if other is None or subject.name not in found or other.name not in found:
            return None, []
        return other, compare(found[subject.name], found[other.name])

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "started": self.started,
            "interrupted": self.interrupted,
            "environment": self.environment,
            "settings": self.settings,
            "subjects": [{"name": subject.name, **asdict(subject)} for subject in self.subjects],
            "results": [self._task(task) for task in self.finished],
        }

    def _task(self, task: str) -> dict[str, Any]:
        found = self.scores[task]
        first = next(iter(found.values()))
        ids = list(dict.fromkeys(row for scores in found.values() for row in scores.rows))
        return {
            "task": task,
            "definition": first.definition,
            "metrics": [metric.to_dict() for metric in first.metrics],
            "summary": {name: _summary(scores) for name, scores in found.items()},
            "comparisons": [row for subject in self.subjects for row in self._compared(task, subject)],
            "rows": [{"id": row, "outcomes": _outcomes(found, row)} for row in ids],
        }

    def _compared(self, task: str, subject: Subject) -> list[dict[str, Any]]:
        other, found = self.comparisons(task, subject)
        if other is None:
            return []
        names = {"subject": subject.name, "against": other.name}
        return [
            {
                **names,
                "metric": each.metric.name,
                "kind": "ratio" if each.metric.is_ratio else "difference",
                "rows": each.rows,
                **each.estimate.to_dict(),
            }
            for each in found
        ]

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> QualityReport:
        """The report that `to_dict` was called on; summaries and comparisons are made from the rows anew."""
        report = cls(raw["environment"], raw["settings"], started=raw["started"], interrupted=raw["interrupted"])
        for subject in raw["subjects"]:
            report.subjects.append(Subject(**{name: subject[name] for name in Subject.__slots__}))
        for task in raw["results"]:
            metrics = tuple(Metric(**metric) for metric in task["metrics"])
            for name, summary in task["summary"].items():
                scores = Scores(task["task"], task["definition"], metrics, skipped=summary["skipped"])
                for row in task["rows"]:
                    if name in row["outcomes"]:
                        scores.rows[row["id"]] = Outcome(**row["outcomes"][name])
                report.scores.setdefault(task["task"], {})[name] = scores
        return report


def _summary(scores: Scores) -> dict[str, Any]:
    return {
        "rows": len(scores.rows),
        "skipped": scores.skipped,
        "fell_back": len(scores.fell_back),
        "note": next(iter(scores.fell_back), ""),
        "metrics": {name: found.to_dict() for name, found in scores.estimates().items()},
    }


def _outcomes(found: dict[str, Scores], row: str) -> dict[str, Any]:
    return {name: scores.rows[row].to_dict() for name, scores in found.items() if row in scores.rows}


def read_quality(path: Path) -> QualityReport:
    """A report that `--json` wrote; BenchmarkDataError where the file is none, or of another schema."""
    return read_report_file(path, SCHEMA, QualityReport.from_dict)
