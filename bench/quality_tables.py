"""A report of `russet bench quality` for people: one table a task."""

from __future__ import annotations

from russet.bench import drawing
from russet.bench.cells import machine_line, model_line
from russet.bench.drawing import Table
from russet.bench.intervals import Estimate
from russet.bench.quality import Comparison, Scores
from russet.bench.quality_metrics import Metric
from russet.bench.quality_report import QualityReport, Subject

Compared = tuple[Subject | None, list[Comparison]]


def tables(report: QualityReport) -> list[Table]:
    """One a task with at least one row."""
    return [_table(report, task) for task in report.finished]


def _table(report: QualityReport, task: str) -> Table:
    found = {name: scores for name, scores in report.scores[task].items() if scores.rows}
    metrics = [m for m in next(iter(found.values())).metrics if any(m.name in s.estimates() for s in found.values())]
    compared = {s.name: report.comparisons(task, s) for s in report.subjects if s.name in found}
    several = any(other is not None for other, _ in compared.values())
    header = ["model", "rows"]
    for metric in metrics:
        header += [_heading(metric), *([f"{'ratio' if metric.is_ratio else '−'} baseline"] if several else [])]
    rows = []
    for subject in report.subjects:
        if subject.name in found:
            rows.append(_row(subject, found[subject.name], metrics, compared[subject.name], several))
    return Table(f"{task} ({next(iter(found.values())).definition})", tuple(header), tuple(rows))


def _heading(metric: Metric) -> str:
    name = metric.name.replace("_", " ") if metric.kind in ("perplexity", "bits") else f"{metric.name} %"
    return f"{name} {'↑' if metric.higher_is_better else '↓'}"


def _row(subject: Subject, scores: Scores, metrics: list[Metric], compared: Compared, several: bool) -> tuple[str, ...]:
    values, differences = scores.estimates(), {each.metric.name: each for each in compared[1]}
    cells = [subject.name, str(len(scores.rows))]
    for metric in metrics:
        cells.append(_value(metric, values.get(metric.name)))
        if several:
            found = differences.get(metric.name)
            cells.append("" if found is None else _difference(metric, found.estimate))
    return tuple(cells)


def _value(metric: Metric, found: Estimate | None) -> str:
    if found is None:
        return ""
    if metric.kind in ("perplexity", "bits"):
        digits = 4 if metric.kind == "bits" else 2
        return f"{found.value:.{digits}f} ({found.low:.{digits}f}–{found.high:.{digits}f})"
    return f"{100 * found.value:.1f} ({100 * found.low:.1f}–{100 * found.high:.1f})"


def _difference(metric: Metric, found: Estimate) -> str:
    if metric.is_ratio:
        return f"{found.value:.3f}x ({found.low:.3f}–{found.high:.3f})"
    if metric.kind == "bits":
        return f"{found.value:+.4f} ({found.low:+.4f} to {found.high:+.4f})"
    return f"{100 * found.value:+.1f} ({100 * found.low:+.1f} to {100 * found.high:+.1f})"


def notes(report: QualityReport) -> list[str]:
    """Where it was measured, what is compared with what, and what the tables leave out."""
    lines = [machine_line(report.environment)]
    models = {subject.model: subject for subject in report.subjects}
    lines += [model_line({"name": found.description or name, "sha256": found.sha256}) for name, found in models.items()]
    lines.append("In brackets: 95 % intervals. ↑ higher is better, ↓ lower is better.")
    pairs = [(subject, report.against(subject)) for subject in report.subjects]
    if any(other is not None for _, other in pairs):
        said = "; ".join(f"{one.name}: {other.name}" for one, other in pairs if other is not None)
        lines.append(f"Baselines, on the rows that both have: {said}.")
    for task, found in report.finished.items():
        for name, scores in found.items():
            if scores.skipped:
                lines.append(f"{task}, {name}: {scores.skipped} rows left out, since they do not fit in the context.")
            if scores.fell_back:
                reason = scores.fell_back[0].rstrip(".")
                lines.append(
                    f"{task}, {name}: exact prefill in {len(scores.fell_back)} rows or parts of them ({reason})."
                )
    if report.interrupted:
        lines.append("Interrupted: what was finished is shown.")
    return lines


def show(report: QualityReport, *, terminal: bool) -> None:
    """Print the report."""
    drawing.show(tables(report), notes(report), terminal=terminal)
