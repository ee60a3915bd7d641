"""A report of `russet bench ttft` for people: three tables a model, and what to know beside them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from russet.bench import drawing
from russet.bench.base import OURS
from russet.bench.cells import by_layer, machine_line, model_line, ratio_cell, seconds_cell, spread_cell
from russet.bench.cold_start import cold_ratios
from russet.bench.drawing import Table
from russet.bench.significance import Comparison
from russet.bench.stats import Summary
from russet.bench.ttft_contenders import BASELINE
from russet.bench.ttft_report import LengthRuns, ModelResult, TtftReport, summaries
from russet.bench.ttft_run import Run, share_computed
from russet.engine.storage import readable_bytes

AGAINST = f"faster than {BASELINE}"


def tables(report: TtftReport) -> list[Table]:
    """The tables for which something was measured."""
    found = [table for model in report.finished for table in (_waiting(model), _speed(model), _cold(model))]
    return [table for table in found if table.rows]


def _each(model: ModelResult) -> Iterator[tuple[LengthRuns, str, dict[str, Summary]]]:
    for held in model.finished:
        for name, runs in held.finished.items():
            yield held, name, summaries(runs)


def _waiting(model: ModelResult) -> Table:
    header = ("prompt", "contender", "TTFT s", "mean ± sd", "p95", AGAINST)
    rows = []
    for held, name, found in _each(model):
        ttft = found.get("ttft_s")
        if ttft is not None:
            spread = f"{seconds_cell(ttft.mean)} ± {seconds_cell(ttft.stdev, ttft.mean)}"
            cells = (seconds_cell(ttft.median), spread, seconds_cell(ttft.p95))
            rows.append((str(held.prompt_tokens), name, *cells, comparison_cell(held.speed_up(name, "ttft_s"))))
    return Table(f"{model.name}: time to first token, text to text", header, tuple(rows))


def _speed(model: ModelResult) -> Table:
    predicted = any(held.prediction for held in model.finished)
    header = ("prompt", "contender", "prefill s", "prefill tok/s", AGAINST, "decode tok/s", AGAINST, "peak memory")
    header += ("computed %",)
    header += ("of predicted prefill", "of predicted decode") if predicted else ()
    rows = []
    for held, name, found in _each(model):
        share = share_computed(held.runs[name][0], held.runs.get(BASELINE, []))
        decode, memory = found.get("decode_tps"), found.get("peak_memory_bytes")
        cells = (
            str(held.prompt_tokens),
            name,
            seconds_cell(found["prefill_s"].median),
            _rate(found["prefill_tps"]),
            comparison_cell(held.speed_up(name, "prefill_s")),
            _rate(decode) if decode else "",
            comparison_cell(held.speed_up(name, "decode_tps")),
            readable_bytes(memory.highest) if memory else "",
            "" if share is None else f"{100 * share:.0f}",
        )
        if predicted:
            reached = held.roofline_share(name) or {}
            cells += tuple(f"{reached[key]:.0%}" if key in reached else "" for key in ("prefill", "decode"))
        rows.append(cells)
    return Table(f"{model.name}: prefill, decoding and memory", header, tuple(rows))


def _cold(model: ModelResult) -> Table:
    header = ("engine", "first output s", "end s", f"{OURS} / engine: first output", "end")
    runs = {name: found for name, found in model.cold_start.items() if found}
    rows = []
    for name, found in runs.items():
        ratios = cold_ratios(runs, name)
        cells = (
            name,
            spread_cell(Summary(tuple(run.first_output_s for run in found)), 2),
            spread_cell(Summary(tuple(run.end_s for run in found)), 2),
        )
        rows.append((*cells, *(ratio_cell(ratios[key]) if ratios else "" for key in ("first_output", "end"))))
    return Table(f"{model.name}: cold start, one process, one prompt, one token", header, tuple(rows))


def comparison_cell(found: Comparison | None) -> str:
    """A ratio with its interval, "~" before one that may be chance; without an interval there were too few runs."""
    if found is None:
        return ""
    if found.low is None or found.high is None:
        return f"~{found.ratio:.2f}x"
    return f"{'' if found.significant else '~'}{found.ratio:.2f}x ({found.low:.2f}–{found.high:.2f})"


def _rate(found: Summary) -> str:
    return f"{found.median:.1f}" if found.median < 1000 else f"{found.median:.0f}"


def notes(report: TtftReport) -> list[str]:
    """Where it was measured, what the marks mean, and what may have disturbed it."""
    settings = report.settings
    count = f"up to {settings['repeat']}" if report.interrupted else str(settings["repeat"])
    lines = [
        machine_line(report.environment),
        f"Medians of {count} runs, {settings['generate']} tokens generated. Above 1x is faster than {BASELINE}; in "
        "brackets the 95 % interval; ~ marks what may be chance, as everything is with fewer than 4 runs.",
    ]
    for model in report.finished:
        lines += _model_notes(model)
    lines += pressure_notes([run for model in report.finished for run in _runs(model)])
    if report.interrupted:
        lines.append("Interrupted: what was finished is shown.")
    return lines


def _model_notes(model: ModelResult) -> list[str]:
    lines = [model_line({"name": model.name, "sha256": model.sha256})]
    if model.kv_bytes_per_token:
        lines[0] = f"{lines[0][:-1]}, KV cache {model.kv_bytes_per_token / 1024:.1f} KiB a token."
    lines += [f"{name}: {found.setting}." for name, found in model.contenders.items()]
    if model.left_out:
        lengths = " and ".join(map(str, model.left_out))
        lines.append(f"{lengths} tokens were left out: with the reply they exceed the context of {model.context}.")
    predicted = next((held.prediction for held in model.finished if held.prediction), None)
    if predicted:
        lines.append(f"Predictions are those of `russet bench roofline` for {predicted.chip}, with exact prefill.")
    for held in model.finished:
        for name, runs in held.finished.items():
            lines += _strategy_notes(held, name, runs[0])
        lines += _same_tokens(held)
    return lines


def _same_tokens(held: LengthRuns) -> list[str]:
    """Whether every other engine drew what Russet's exact prefill led to."""
    ours = held.runs.get(BASELINE, [])
    lines = []
    for name, runs in held.finished.items():
        if name.startswith(OURS) or not ours or not runs[0].tokens:
            continue
        pairs = zip(ours[0].tokens, runs[0].tokens, strict=False)
        differs = next((i for i, (mine, other) in enumerate(pairs) if mine != other), None)
        same = "the same tokens" if differs is None else f"other tokens from number {differs + 1} on"
        lines.append(f"{held.prompt_tokens} tokens, {name}: drew {same}.")
    return lines


def _strategy_notes(held: LengthRuns, name: str, run: Run) -> list[str]:
    lines = []
    if run.note:
        lines.append(f"{held.prompt_tokens} tokens, {name}: {run.ran} prefill ran ({run.note.rstrip('.')}).")
    elif run.layer_tokens and not run.exact:
        lines.append(f"{held.prompt_tokens} tokens, {name}: tokens computed, {by_layer(run.layer_tokens)}.")
    return lines


def _runs(model: ModelResult) -> Iterator[Run]:
    for held in model.finished:
        for runs in held.finished.values():
            yield from runs


def pressure_notes(runs: Sequence[Run]) -> list[str]:
    """What heat and memory pressure did to the runs, where a Mac told; nothing where all was well."""
    lines = []
    for what, calm, levels in (
        ("Thermal pressure", "nominal", Counter(run.thermal for run in runs)),
        ("Memory pressure", "normal", Counter(run.memory_pressure for run in runs)),
    ):
        raised = [f"{level} before {count}" for level, count in levels.items() if level not in (None, calm)]
        if raised:
            known = sum(count for level, count in levels.items() if level is not None)
            lines.append(
                f"{what} was {', '.join(raised)} of {known} runs: let the machine rest and measure again with --delay."
            )
    return lines


def markdown(report: TtftReport) -> str:
    """The whole report as Markdown."""
    return drawing.markdown(tables(report), notes(report))


def show(report: TtftReport, *, terminal: bool) -> None:
    """Print the report."""
    drawing.show(tables(report), notes(report), terminal=terminal)
