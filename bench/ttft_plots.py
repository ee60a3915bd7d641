"""Plots of `russet bench ttft`: waiting against prompt length, every token's latency, and score against waiting."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from russet.bench.plot_style import device_name, require_matplotlib, save, style, tidy
from russet.bench.scores import TaskScores
from russet.bench.stats import Summary
from russet.bench.ttft_contenders import OURS
from russet.bench.ttft_report import LengthRuns, ModelResult, TtftReport, summaries
from russet.engine.errors import BenchmarkDataError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 3


def draw_all(report: TtftReport, folder: Path, scores: list[TaskScores]) -> list[Path]:
    """Write every plot for which there are values into a folder that exists; the files written."""
    require_matplotlib()
    drawn = [("ttft.png", _waiting), ("tokens.png", _strip)]
    written = []
    for name, draw in drawn:
        figure = draw(report)
        if figure is not None:
            save(figure, folder / name)
            written.append(folder / name)
    for model in report.finished if scores else []:
        name = "score.png" if len(report.finished) == 1 else f"score-{_file_name(model.name)}.png"
        save(_scores(report, model, scores), folder / name)
        written.append(folder / name)
    return written


def _file_name(model: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-._" else "-" for letter in model)


def _panels(count: int, columns: int, width: float, height: float) -> tuple[Figure, list[Any]]:
    from matplotlib.figure import Figure

    columns = min(columns, count)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(0.6 + width * columns, 1.1 + height * rows), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for panel in panels[count:]:
        panel.set_axis_off()
    return figure, panels[:count]


def _finish(figure: Figure, panels: list[Any], title: str) -> Figure:
    """A legend of all panels' lines below them, and a title."""
    handles = {
        label: handle for panel in panels for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        list(handles.values()), list(handles), loc="outside lower center", ncols=min(4, len(handles)), frameon=False
    )
    figure.suptitle(title, fontsize=11)
    return figure


def _waiting(report: TtftReport) -> Figure | None:
    """TTFT against prompt length, medians with the range of all runs, a panel a model."""
    models = [model for model in report.finished if _points(model)]
    if not models:
        return None
    figure, panels = _panels(len(models), 2, 5.2, 3.6)
    for panel, model in zip(panels, models, strict=True):
        points = _points(model)
        for i, (name, found) in enumerate(points.items()):
            colour, marker = style(i)
            # A little apart, so that bars at the same length do not hide each other.
            aside = 2 ** (0.03 * (i - (len(points) - 1) / 2))
            panel.errorbar(
                [length * aside for length in found],
                [each.median for each in found.values()],
                yerr=_range(list(found.values())),
                color=colour,
                marker=marker,
                markersize=5.5,
                linewidth=1.3,
                elinewidth=0.8,
                capsize=2.5,
                label=name,
            )
        lengths = sorted({length for found in points.values() for length in found})
        panel.set_xscale("log", base=2)
        panel.set_xticks(lengths, [f"{length:,}" for length in lengths])
        panel.minorticks_off()
        _seconds_axis(panel)
        panel.set_xlim(lengths[0] / 1.25, lengths[-1] * 1.25)
        panel.set_xlabel("prompt tokens")
        panel.set_ylabel("time to first token, s")
        panel.set_title(model.name, fontsize=10)
        tidy(panel)
    return _finish(figure, panels, f"Text to first text on {device_name(report.environment)}")


def _seconds_axis(panel: Any) -> None:
    """A logarithmic axis with plain numbers at 1, 2 and 5 of every decade."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    panel.set_yscale("log")
    panel.yaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.yaxis.set_minor_locator(NullLocator())


def _points(model: ModelResult) -> dict[str, dict[int, Summary]]:
    """Contender -> prompt length -> TTFT, of those that have one."""
    points: dict[str, dict[int, Summary]] = {}
    for held in sorted(model.finished, key=lambda held: held.prompt_tokens):
        for name, runs in held.finished.items():
            found = summaries(runs).get("ttft_s")
            if found is not None:
                points.setdefault(name, {})[held.prompt_tokens] = found
    return points


def _range(found: list[Summary]) -> list[list[float]]:
    """Lengths of error bars, downwards and upwards."""
    return [[each.median - each.lowest for each in found], [each.highest - each.median for each in found]]


def _strip(report: TtftReport) -> Figure | None:
    """Milliseconds between tokens at the longest prompt, a panel a contender, every run a faint row of points."""
    rows = [(model, held, name) for model in report.finished for held, name in _timed(model)]
    if not rows:
        return None
    figure, panels = _panels(len(rows), 2, 5.2, 1.9)
    shared = {model.name: _top(model) for model, _, _ in rows}
    for panel, (model, held, name) in zip(panels, rows, strict=True):
        colour, _ = style(list(held.runs).index(name))
        intervals = [[1000 * gap for gap in run.intervals_s] for run in held.runs[name]]
        for run in intervals:
            panel.plot(range(2, len(run) + 2), run, ".", color=colour, alpha=0.35, markersize=3.5, markeredgewidth=0)
        medians = [Summary(tuple(column)).median for column in zip(*intervals, strict=False)]
        panel.plot(range(2, len(medians) + 2), medians, color=colour, linewidth=1.1)
        top = shared[model.name]
        panel.set_ylim(0, top)
        over = sum(gap > top for run in intervals for gap in run)
        if over:
            text = f"{over} above {top:.0f} ms, up to {max(max(run) for run in intervals):.0f}"
            panel.annotate(text, (0.99, 0.95), xycoords="axes fraction", ha="right", va="top", fontsize=8)
        panel.set_title(f"{name}, {model.name}, {held.prompt_tokens:,} tokens before", fontsize=9)
        panel.set_ylabel("ms a token")
        panel.set_xlabel("token of the reply")
        tidy(panel)
    figure.suptitle(f"Every token's latency on {device_name(report.environment)}: runs and their median", fontsize=11)
    return figure


def _timed(model: ModelResult) -> list[tuple[LengthRuns, str]]:
    """The longest prompt's contenders that tell when each token came."""
    if not model.finished:
        return []
    held = max(model.finished, key=lambda held: held.prompt_tokens)
    return [(held, name) for name, runs in held.finished.items() if runs[0].intervals_s]


def _top(model: ModelResult) -> float:
    """The end of the axis: room above nearly all intervals, so that one hiccup does not flatten the rest."""
    gaps = sorted(1000 * gap for held, name in _timed(model) for run in held.runs[name] for gap in run.intervals_s)
    return 1.4 * gaps[int(0.98 * (len(gaps) - 1))]


def _scores(report: TtftReport, model: ModelResult, scores: list[TaskScores]) -> Figure:
    """Score against TTFT at the longest prompt, a panel a task. Raises BenchmarkDataError without a common mode."""
    held = max(model.finished, key=lambda held: held.prompt_tokens)
    waits = {
        found.prefill: summaries(held.runs[name])["ttft_s"]
        for name, found in model.contenders.items()
        if found.engine == OURS and name in held.finished
    }
    tasks = [task for task in scores if task.sha256 == model.sha256 and set(task.scores) & set(waits)]
    if not tasks:
        raise BenchmarkDataError(
            f"The quality file has no scores of {model.name}'s weights with a prefill mode that was timed."
        )
    figure, panels = _panels(len(tasks), COLUMNS, 3.9, 3.2)
    for panel, task in zip(panels, tasks, strict=True):
        for i, (name, wait) in enumerate(waits.items()):
            if name in task.scores:
                _score_point(panel, name, wait, task, style(i))
        panel.set_xlabel("time to first token, s")
        panel.set_xlim(left=0)
        if task.percent:
            panel.set_ylim(bottom=0)
        panel.set_ylabel(f"{task.measure}{', %' if task.percent else ''}")
        panel.set_title(task.name, fontsize=10)
        tidy(panel)
    title = f"{model.name}, {held.prompt_tokens:,} prompt tokens, on {device_name(report.environment)}"
    return _finish(figure, panels, title)


def _score_point(panel: Any, name: str, wait: Summary, task: TaskScores, look: tuple[str, str]) -> None:
    colour, marker = look
    score, scale = task.scores[name], 100 if task.percent else 1
    panel.errorbar(
        [wait.median],
        [scale * score.value],
        xerr=_range([wait]),
        yerr=[[scale * (score.value - score.low)], [scale * (score.high - score.value)]],
        color=colour,
        marker=marker,
        markersize=7,
        linestyle="none",
        elinewidth=0.8,
        capsize=2.5,
        label=name,
    )
