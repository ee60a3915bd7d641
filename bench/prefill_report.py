"""The result of `russet bench prefill` as data: every row of every strategy, and what follows from them."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from russet.bench.prefill_run import RowRun
from russet.bench.prefill_summary import Summary, summarise
from russet.bench.report_file import read_report_file

SCHEMA = "russet-bench-prefill/1"
"""Changes its number whenever a field changes its meaning or goes; docs/benchmarks.md describes it."""


@dataclass
class RowResult:
    """One row: strategy -> its run. Exact prefill's is there; others may be missing where reports were joined."""

    id: str
    prompt_tokens: int
    runs: dict[str, RowRun]

    def to_dict(self) -> dict[str, Any]:
        runs = {name: run.to_dict() for name, run in self.runs.items()}
        return {"id": self.id, "prompt_tokens": self.prompt_tokens, "runs": runs}

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> RowResult:
        return cls(raw["id"], raw["prompt_tokens"], {name: RowRun(**run) for name, run in raw["runs"].items()})


@dataclass
class TaskResult:
    """The finished rows of a task; `skipped` rows did not fit in the model's context.

    `measure` is empty where prompts are random and nothing is scored.
    """

    name: str
    measure: str
    binary: bool
    generate: int
    skipped: int = 0
    rows: list[RowResult] = field(default_factory=list)

    def ran(self, strategies: list[str]) -> list[str]:
        """Those of some strategies that at least one row has."""
        return [name for name in strategies if any(name in row.runs for row in self.rows)]

    def summary(self, name: str) -> Summary:
        """What the rows that a strategy finished, at least one, say of it beside exact prefill."""
        rows = [row for row in self.rows if name in row.runs]
        return summarise([row.runs[name] for row in rows], [row.runs["exact"] for row in rows], self.binary)

    def to_dict(self, strategies: list[str]) -> dict[str, Any]:
        lengths = [row.prompt_tokens for row in self.rows]
        return {
            "task": self.name,
            "measure": self.measure,
            "binary": self.binary,
            "generate": self.generate,
            "skipped": self.skipped,
            "prompt_tokens": {"min": min(lengths), "mean": sum(lengths) / len(lengths), "max": max(lengths)},
            "summary": {name: self.summary(name).to_dict() for name in self.ran(strategies)},
            "rows": [row.to_dict() for row in self.rows],
        }

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> TaskResult:
        rows = [RowResult.from_dict(row) for row in raw["rows"]]
        return cls(raw["task"], raw["measure"], raw["binary"], raw["generate"], raw["skipped"], rows)


@dataclass
class PrefillReport:
    """Filled while the benchmark runs, so that what an interruption leaves is a report as well."""

    model: dict[str, Any]
    environment: dict[str, Any]
    settings: dict[str, Any]
    strategies: list[str]
    started: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    tasks: list[TaskResult] = field(default_factory=list)
    interrupted: bool = False
    sources: list[dict[str, Any]] = field(default_factory=list)
    """Of a report that was joined of several: `started`, `environment` and `settings` of each."""

    @property
    def finished(self) -> list[TaskResult]:
        """The tasks that have at least one row."""
        return [task for task in self.tasks if task.rows]

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "started": self.started,
            "interrupted": self.interrupted,
            "model": self.model,
            "environment": self.environment,
            "settings": self.settings,
            "strategies": self.strategies,
            "sources": self.sources,
            "results": [task.to_dict(self.strategies) for task in self.finished],
        }

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> PrefillReport:
        """The report that `to_dict` was called on; summaries are made from the rows anew."""
        tasks = [TaskResult.from_dict(task) for task in raw["results"]]
        stamps = (raw["model"], raw["environment"], raw["settings"], raw["strategies"], raw["started"])
        return cls(*stamps, tasks, raw["interrupted"], raw.get("sources", []))


def read_report(path: Path) -> PrefillReport:
    """A report that `--json` wrote; BenchmarkDataError where the file is none, or of another schema."""
    return read_report_file(path, SCHEMA, PrefillReport.from_dict)
