"""A report of `russet bench prefill` for people: one table a task."""

from __future__ import annotations

from russet.bench import drawing
from russet.bench.cells import by_layer, machine_line, model_line
from russet.bench.drawing import Table
from russet.bench.intervals import Estimate
from russet.bench.prefill_report import PrefillReport, TaskResult
from russet.bench.prefill_summary import Summary
from russet.engine.storage import readable_bytes

SCORES = ("score %", "− exact", "of exact %")
SPEED = (
    "prefill s",
    "speed-up",
    "computed %",
    "decode ratio",
    "revived",
    "memory beyond weights",
)


def tables(report: PrefillReport) -> list[Table]:
    """One a task with at least one row."""
    return [_table(task, report.strategies) for task in report.finished]


def _table(task: TaskResult, strategies: list[str]) -> Table:
    summaries = {name: task.summary(name) for name in task.ran(strategies)}
    if not task.measure:
        rows = tuple((name, *_speed(name, found)) for name, found in summaries.items())
        return Table(f"{task.name}: {len(task.rows)} runs, no scores", ("prefill", *SPEED), rows)
    mean = sum(row.prompt_tokens for row in task.rows) / len(task.rows)
    title = f"{task.name}: {task.measure}, {len(task.rows)} rows, {mean:.0f} prompt tokens on average"
    fewer = any(found.rows < len(task.rows) for found in summaries.values())
    rows = tuple(
        (name, *((str(found.rows),) if fewer else ()), *_scores(name, found), *_speed(name, found))
        for name, found in summaries.items()
    )
    return Table(title, ("prefill", *(("rows",) if fewer else ()), *SCORES, *SPEED), rows)


def _scores(name: str, found: Summary) -> tuple[str, ...]:
    against = ("", "") if name == "exact" else (_signed(found.difference), _percent(found.retention))
    return _percent(found.score), *against


def _speed(name: str, found: Summary) -> tuple[str, ...]:
    return (
        "" if found.prefill_s is None else f"{found.prefill_s.value:.3f}",
        "" if name == "exact" else _times(found.speed_up),
        "" if found.computed is None else f"{100 * found.computed:.0f}",
        "" if name == "exact" else _times(found.decode_ratio),
        f"{found.revived:.0f}" if found.revived else "",
        "" if found.prefill_s is None else readable_bytes(found.peak_memory_bytes),
    )


def _percent(found: Estimate | None) -> str:
    if found is None:
        return ""
    return f"{100 * found.value:.1f} ({100 * found.low:.0f}–{100 * found.high:.0f})"


def _signed(found: Estimate | None) -> str:
    if found is None:
        return ""
    return f"{100 * found.value:+.1f} ({100 * found.low:+.0f} to {100 * found.high:+.0f})"


def _times(found: Estimate | None) -> str:
    return "" if found is None else f"{found.value:.2f}x ({found.low:.2f}–{found.high:.2f})"


def notes(report: PrefillReport) -> list[str]:
    """Where it was measured, and what the tables leave out."""
    machines = [source["environment"] for source in report.sources] or [report.environment]
    lines = [
        *dict.fromkeys(machine_line(machine) for machine in machines),
        model_line(report.model),
        "In brackets: 95 % intervals. Speed-up, decode ratio: medians of the rows' ratios to exact prefill.",
    ]
    for task in report.finished:
        if task.skipped:
            lines.append(f"{task.name}: {task.skipped} rows left out, since they do not fit in the model's context.")
        for name in task.ran(report.strategies):
            found = task.summary(name)
            if found.fell_back:
                reason = found.note.rstrip(".")
                lines.append(f"{task.name}, {name}: exact prefill in {found.fell_back} rows ({reason}).")
            if not task.measure and found.layer_tokens:
                lines.append(f"{task.name}, {name}: tokens computed, {by_layer(found.layer_tokens)}.")
    if report.interrupted:
        lines.append("Interrupted: what was finished is shown.")
    return lines


def show(report: PrefillReport, *, terminal: bool) -> None:
    """Print the report."""
    drawing.show(tables(report), notes(report), terminal=terminal)
