"""A report of `russet bench decode` for people."""

from __future__ import annotations

from typing import Any

from russet.bench import drawing
from russet.bench.drawing import Table
from russet.bench.report import OURS, Report, cold_ratios, speed_ratios, summaries
from russet.bench.stats import Ratio, Summary
from russet.engine.storage import readable_bytes


def tables(report: Report) -> list[Table]:
    """The tables for which something was measured."""
    found = [_warm(report), _steps(report), _cold(report)]
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


def model_line(found: dict[str, Any]) -> str:
    """The model and its weights in a sentence."""
    sha256 = found["sha256"]
    return f"Model: {found['name']}, {f'sha256 {sha256[:12]}' if sha256 else 'random weights'}."


def machine_line(found: dict[str, Any]) -> str:
    """Machine and versions in a sentence; what is not known is left out."""
    machine = [
        found["cpu"] or "unknown CPU",
        f"{found['cores']} cores",
        f"{readable_bytes(found['memory_bytes'])} memory",
    ]
    if found["gpu"]:
        machine.insert(0, f"{found['gpu']} with {readable_bytes(found['gpu_memory_bytes'])}")
    threads = found["blas_threads"]
    russet = f"Russet {found['russet']}" + (f" ({found['git']})" if found["git"] else "")
    software = [found["os"], f"Python {found['python']}", russet, f"MLX {found['mlx']}"]
    if found["mlx-lm"]:
        software.append(f"mlx-lm {found['mlx-lm']}")
    if found["blas"]:
        software.append(f"BLAS {found['blas']}" + (f" (threads: {threads})" if threads else ""))
    return f"Machine: {', '.join(machine)}; {', '.join(software)}; load {found['load_average']:.1f} at the start."


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
                *(str(result.prompt_tokens), name, _spread(found["prefill_s"], 3), _spread(found["prefill_tps"], 1)),
                _spread(found["decode_tps"], 1) if result.generate > 1 else "",
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
        _ratio(ratios["prefill"]),
        _ratio(ratios["decode"]) if "decode" in ratios else "",
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


def _cold(report: Report) -> Table:
    header = ("engine", "first output s", "end s", "russet / engine: first output", "end")
    runs = {name: found for name, found in report.cold_start.items() if found}
    rows = []
    for name, found in runs.items():
        ratios = cold_ratios(runs, name)
        rows.append(
            (
                name,
                _spread(Summary(tuple(run.first_output_s for run in found)), 2),
                _spread(Summary(tuple(run.end_s for run in found)), 2),
                _ratio(ratios["first_output"]) if ratios else "",
                _ratio(ratios["end"]) if ratios else "",
            )
        )
    return Table("Cold start: one process, one prompt, one token", header, tuple(rows))


def _spread(found: Summary, digits: int) -> str:
    return f"{found.median:.{digits}f} ({found.lowest:.{digits}f}–{found.highest:.{digits}f})"


def _ratio(found: Ratio) -> str:
    return f"{found.median:.2f}x ({found.lowest:.2f}–{found.highest:.2f})"


def markdown(report: Report) -> str:
    """The whole report as Markdown."""
    return drawing.markdown(tables(report), notes(report))


def show(report: Report, *, terminal: bool) -> None:
    """Print the report."""
    drawing.show(tables(report), notes(report), terminal=terminal)
