"""Several reports of `russet bench prefill` as one: scores from one machine and times from another, row by row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from russet.bench.prefill_report import PrefillReport, RowResult, TaskResult
from russet.bench.prefill_run import RowRun
from russet.engine.errors import BenchmarkDataError


def joined(reports: Sequence[PrefillReport]) -> PrefillReport:
    """One report of at least one; its `sources` say where each part was measured.

    Rows are the same where task and id are. Of a run that several reports have, the first one's score counts, and
    the first time that any has. Raises BenchmarkDataError where models differ, or prompts of the same row.
    """
    first, *others = reports
    if not others:
        return first
    for other in others:
        if other.model["sha256"] != first.model["sha256"]:
            raise BenchmarkDataError(
                f"The reports are of {first.model['name']} and {other.model['name']}, whose weights differ; join "
                "reports of one model."
            )
    names = list(dict.fromkeys(name for report in reports for name in report.strategies))
    tasks: dict[str, TaskResult] = {}
    for report in reports:
        for task in report.finished:
            _add(tasks.setdefault(task.name, replace(task, skipped=0, rows=[])), task)
    sources = [source for report in reports for source in (report.sources or [_source(report)])]
    cut = any(report.interrupted for report in reports)
    return replace(first, strategies=names, tasks=list(tasks.values()), interrupted=cut, sources=sources)


def _source(report: PrefillReport) -> dict[str, Any]:
    return {"started": report.started, "environment": report.environment, "settings": report.settings}


def _add(whole: TaskResult, part: TaskResult) -> None:
    whole.skipped = max(whole.skipped, part.skipped)
    places = {row.id: i for i, row in enumerate(whole.rows)}
    for row in part.rows:
        if row.id in places:
            whole.rows[places[row.id]] = _both(whole.rows[places[row.id]], row)
        else:
            whole.rows.append(row)


def _both(one: RowResult, other: RowResult) -> RowResult:
    if one.prompt_tokens != other.prompt_tokens:
        raise BenchmarkDataError(
            f"Row {one.id} has {one.prompt_tokens} tokens in one report and {other.prompt_tokens} in another; join "
            "reports of the same tasks."
        )
    runs = dict(one.runs)
    for name, run in other.runs.items():
        runs[name] = _run(runs[name], run) if name in runs else run
    return replace(one, runs=runs)


def _run(one: RowRun, other: RowRun) -> RowRun:
    """The first run, with the other's time and memory where it has none."""
    if one.prefill_s is not None:
        return one
    return replace(
        one, prefill_s=other.prefill_s, decode_tps=other.decode_tps, peak_memory_bytes=other.peak_memory_bytes
    )
