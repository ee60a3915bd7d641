"""Score against prefill speed, or against work saved where nothing was timed, one panel a task.

matplotlib is an extra.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from russet.bench.intervals import Estimate
from russet.bench.plot_style import device_name, require_matplotlib, save, style, tidy
from russet.engine.errors import BenchmarkDataError

if TYPE_CHECKING:
    from russet.bench.prefill_report import PrefillReport, TaskResult
    from russet.bench.prefill_summary import Summary

LABELS = {"o": (5, 5), "s": (-19, 5), "^": (5, 5), "D": (5, -12), "v": (5, -12), "P": (-19, -12), "X": (-19, 5)}
"""Where a point's setting stands, in points from it; neighbours of different strategies then seldom collide."""
COLUMNS = 3
TICKS = (0.25, 0.5, 1, 1.5, 2, 3, 4, 5, 7, 10, 15, 20, 30, 50, 100)


def score_plot(report: PrefillReport, path: Path) -> None:
    """Draw a report with at least one finished task to a PNG, SVG or PDF file.

    Raises StorageError, and BenchmarkDataError where nothing was scored.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    tasks = [task for task in report.finished if task.measure and _drawn(task, report.strategies)]
    if not tasks:
        raise BenchmarkDataError("The report has no scores to draw beside times; leave out --plot.")
    columns = min(COLUMNS, len(tasks))
    rows = math.ceil(len(tasks) / columns)
    figure = Figure(figsize=(1.2 + 3.8 * columns, 1.3 + 3.3 * rows), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    styles = _styles(report.strategies)
    for panel, task in zip(panels, tasks, strict=False):
        _draw(panel, task, _drawn(task, report.strategies), styles)
    for panel in panels[len(tasks) :]:
        panel.set_axis_off()
    drawn = [panel.get_legend_handles_labels() for panel in panels]
    legend = {label: handle for handles, labels in drawn for handle, label in zip(handles, labels, strict=True)}
    # A panel is as wide as two names.
    ncols = min(2 * columns, len(legend))
    figure.legend(legend.values(), legend.keys(), loc="outside lower center", ncols=ncols, frameon=False)
    machines = [source["environment"] for source in report.sources] or [report.environment]
    devices = dict.fromkeys(device_name(machine) for machine in machines)
    figure.suptitle(f"{report.model['name']} on {' and '.join(devices)}", fontsize=11)
    save(figure, path)


def _drawn(task: TaskResult, strategies: list[str]) -> list[str]:
    """The strategies that a task has scores of, and times or, where exact prefill has none, work."""
    found = {name: task.summary(name) for name in task.ran(strategies)}
    timed = found["exact"].speed_up is not None
    return [name for name, summary in found.items() if summary.score is not None and _gain(summary, timed) is not None]


def _styles(strategies: list[str]) -> dict[str, tuple[str, str]]:
    """Family of strategies -> colour and marker."""
    families = dict.fromkeys(family(name) for name in strategies if name != "exact")
    return {name: style(i) for i, name in enumerate(families)}


def family(name: str) -> str:
    """A strategy's name without its numbers: `superposition:2+cached` is `superposition+cached`."""
    kind, _, rest = name.partition(":")
    _, plus, flag = rest.partition("+")
    return kind + plus + flag


def _setting(name: str) -> str:
    return name.partition(":")[2].partition("+")[0]


def _draw(panel: Any, task: TaskResult, strategies: list[str], styles: dict[str, tuple[str, str]]) -> None:
    exact = _score(task.summary("exact"))
    timed = task.summary("exact").speed_up is not None
    panel.axhspan(100 * exact.low, 100 * exact.high, color="black", alpha=0.06, linewidth=0)
    panel.axhline(100 * exact.value, color="black", linewidth=1, linestyle="--")
    panel.plot([1], [100 * exact.value], "*", color="black", markersize=11, label="exact", linestyle="none", zorder=4)
    for kind, (colour, marker) in styles.items():
        names = [name for name in strategies if family(name) == kind]
        _draw_family(panel, task, names, kind, (colour, marker), timed)
    panel.set_xscale("log")
    low, high = (bound * grown for bound, grown in zip(panel.get_xlim(), (0.97, 1.06), strict=True))
    panel.set_xlim(low, high)
    shown = [tick for tick in TICKS if low <= tick <= high]
    panel.set_xticks(shown, [f"{tick:g}×" for tick in shown])
    panel.minorticks_off()
    panel.set_ylim(bottom=0)
    panel.set_title(f"{task.name} (n = {len(task.rows)})", fontsize=10)
    panel.set_ylabel(f"{task.measure}, %")
    panel.set_xlabel("prefill speed-up over exact" if timed else "exact prefill's work over the strategy's")
    tidy(panel)


def _draw_family(
    panel: Any, task: TaskResult, names: list[str], kind: str, style: tuple[str, str], timed: bool
) -> None:
    """One strategy's settings from slow to fast, each with both intervals and its number."""
    gains = {name: _gain(task.summary(name), timed) for name in names}
    found = sorted(((gain, name) for name, gain in gains.items() if gain is not None), key=lambda pair: pair[0].value)
    if not found:
        return
    colour, marker = style
    x = [gain for gain, _ in found]
    y = [_score(task.summary(name)) for _, name in found]
    panel.errorbar(
        [value.value for value in x],
        [100 * value.value for value in y],
        xerr=_bars(x),
        yerr=[[100 * length for length in side] for side in _bars(y)],
        color=colour,
        marker=marker,
        markersize=6,
        linewidth=1.2,
        elinewidth=0.7,
        capsize=2,
        label=kind,
    )
    for gain, score, (_, name) in zip(x, y, found, strict=True):
        place = (gain.value, 100 * score.value)
        panel.annotate(_setting(name), place, LABELS[marker], textcoords="offset points", fontsize=8, color=colour)


def _score(found: Summary) -> Estimate:
    assert found.score is not None
    return found.score


def _gain(found: Summary, timed: bool) -> Estimate | None:
    """How many times exact prefill's time, or its work, is a strategy's."""
    if timed:
        return found.speed_up
    return Estimate(*[1 / found.computed] * 3) if found.computed else None


def _bars(values: list[Estimate]) -> list[list[float]]:
    """Lengths of error bars, downwards and upwards."""
    return [[max(0.0, v.value - v.low) for v in values], [max(0.0, v.high - v.value) for v in values]]
