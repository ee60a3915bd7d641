"""A report of `russet bench decode` for people."""

from __future__ import annotations

from typing import Any

from russet.bench import drawing
from russet.bench.base import OURS
from russet.bench.cells import machine_line, model_line, ratio_cell, spread_cell
from russet.bench.drawing import Table
from russet.bench.report import Report, speed_ratios, summaries
from russet.engine.storage import readable_bytes


def tables(report: Report) -> list[Table]:
    """The tables for which something was measured."""
    found = [_warm(report), _steps(report)]
    return [table for table in found if table.rows]


def notes(report: Report) -> list[str]:
    """Where it was measured, what was compared, and what the tables leave out."""
    lines = [machine_line(report.environment), model_line(report.model)]
    lines += [f"{name}: {setting}." for name, setting in report.contenders.items()]
    if report.copy_bytes_per_s:
        lines.append(f"A copy reads and writes {report.copy_bytes_per_s / 1e9:.0f} GB/s.")
    if report.as_installed:
        timings = report.as_installed.timings
        lines.append(
            f"mlx-lm as installed (MLX's own BLAS, the folder's number format; one run of "
            f"{report.as_installed_prompt_tokens} + {len(report.as_installed.tokens)} tokens): "
            f"prefill {timings.prefill_tps:.1f} tok/s, decode {timings.decode_tps:.1f} tok/s."
        )
    if report.interrupted:
        lines.append("Interrupted: what was finished is shown.")
    return lines


def _warm(report: Report) -> Table:
    header = ("prompt", "engine", "prefill s", "prefill tok/s", "decode tok/s", "peak memory")
    against = [(peer, f"russet / {peer}") for peer in report.peers]
    for _, label in against:
        header += (f"{label}: prefill", "decode", "same tokens")
    rows = []
    for result in report.finished:
        for name, runs in result.runs.items():
            found = summaries(runs)
            cells = (
                str(result.prompt_tokens),
                name,
                spread_cell(found["prefill_s"], 3),
                spread_cell(found["prefill_tps"], 1),
                spread_cell(found["decode_tps"], 1) if result.generate > 1 else "",
                readable_bytes(found["peak_memory_bytes"].highest),
            )
            for peer, _ in against:
                cells += _comparison(result, peer) if name == OURS else ("", "", "")
            rows.append(cells)
    settings = report.settings
    count = f"up to {settings['repeat']}" if report.interrupted else settings["repeat"]
    title = f"Decode: {settings['generate']} tokens generated, median (lowest–highest) of {count} runs"
    return Table(title, header, tuple(rows))


def _comparison(result: Any, peer: str) -> tuple[str, str, str]:
    ratios = speed_ratios(result, peer)
    difference = result.first_difference(OURS, peer)
    return (
        ratio_cell(ratios["prefill"]),
        ratio_cell(ratios["decode"]) if "decode" in ratios else "",
        "yes" if difference is None else f"up to {difference}",
    )


def _steps(report: Report) -> Table:
    """What a token costs; without rates where the bytes are not known or a run drew one token."""
    header = ("prompt", "engine", "operations a token", "weights", "read a token", "GB/s")
    header += ("of a copy",) if report.copy_bytes_per_s else ()
    rows = []
    for result in report.finished:
        for name, runs in result.runs.items():
            cost = report.steps.get(name)
            if cost is None:
                continue
            cells = (str(result.prompt_tokens), name, str(cost.operations), readable_bytes(cost.weights_bytes))
            read = cost.read_bytes.get(result.prompt_tokens, 0)
            rate = read * summaries(runs)["decode_tps"].median
            cells += (readable_bytes(read), f"{rate / 1e9:.1f}") if rate else ("", "")
            if report.copy_bytes_per_s:
                cells += (f"{rate / report.copy_bytes_per_s:.0%}",) if rate else ("",)
            rows.append(cells)
    return Table("A step of decoding", header, tuple(rows))


def markdown(report: Report) -> str:
    """The whole report as Markdown."""
    return drawing.markdown(tables(report), notes(report))


def show(report: Report, *, terminal: bool) -> None:
    """Print the report."""
    drawing.show(tables(report), notes(report), terminal=terminal)
