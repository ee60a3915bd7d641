"""Two reports of `russet bench ttft` side by side: which differences are more than chance."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from russet.bench.drawing import Table
from russet.bench.environment import MACHINE
from russet.bench.significance import LEVEL, Comparison
from russet.bench.ttft_report import RATES, LengthRuns, TtftReport, faster, summaries
from russet.engine.errors import BenchmarkDataError

SCHEMA = "russet-bench-compare/1"

QUANTITIES = {"ttft_s": "TTFT s", "prefill_s": "prefill s", "decode_tps": "decode tok/s", "peak_memory_bytes": "memory"}

VERSIONS = ("russet", "git", "mlx", "mlx-lm", "os", "python", "blas", "blas_threads", "power_mode", "power_source")


@dataclass(frozen=True, slots=True)
class Compared:
    """One quantity of one contender at one prompt length: medians of both reports, and how much better B is than A."""

    model: str
    prompt_tokens: int
    contender: str
    quantity: str
    a: float
    b: float
    better: Comparison

    @property
    def verdict(self) -> str:
        if self.better.significant:
            good, bad = ("less", "more") if self.quantity == "peak_memory_bytes" else ("faster", "slower")
            return good if self.better.ratio > 1 else bad if self.better.ratio < 1 else "no difference"
        return "no difference shown" if self.better.enough else "too few runs to tell"

    def to_dict(self) -> dict[str, Any]:
        keys = ("model", "prompt_tokens", "contender", "quantity", "a", "b", "verdict")
        return {**{key: getattr(self, key) for key in keys}, "better": self.better.to_dict()}


def check_machines(a: TtftReport, b: TtftReport) -> None:
    """Raise BenchmarkDataError where two reports come from different machines."""
    differing = _differences(a.environment, b.environment, MACHINE)
    if differing:
        raise BenchmarkDataError(
            f"The reports come from different machines ({'; '.join(differing)}), so that no difference says anything "
            "of the software; --across-machines compares them all the same."
        )


def _differences(a: dict[str, Any], b: dict[str, Any], keys: tuple[str, ...]) -> list[str]:
    return [f"{key} {a.get(key)} and {b.get(key)}" for key in keys if a.get(key) != b.get(key)]


def compare_reports(a: TtftReport, b: TtftReport) -> list[Compared]:
    """Whatever both reports measured. Raises BenchmarkDataError where that is nothing."""
    ours = dict(_series(a))
    found = []
    for key, runs in _series(b):
        if key not in ours:
            continue
        before, after = summaries(ours[key].runs[key[2]]), summaries(runs.runs[key[2]])
        for quantity in QUANTITIES:
            if quantity in before and quantity in after:
                better = faster(quantity, after[quantity], before[quantity])
                found.append(Compared(*key, quantity, before[quantity].median, after[quantity].median, better))
    if not found:
        raise BenchmarkDataError(
            "The reports have no model, prompt length and contender in common; compare runs with the same options."
        )
    return found


def _series(report: TtftReport) -> Iterator[tuple[tuple[str, int, str], LengthRuns]]:
    for model in report.finished:
        for held in model.finished:
            for name in held.finished:
                yield (model.name, held.prompt_tokens, name), held


def table(found: list[Compared]) -> Table:
    """A row a quantity."""
    header = ("model", "prompt", "contender", "quantity", "A", "B", "B is better by", "p", "B is")
    rows = tuple(
        (
            *(one.model, str(one.prompt_tokens), one.contender, QUANTITIES[one.quantity]),
            *(_value(one.quantity, one.a), _value(one.quantity, one.b)),
            *(_ratio(one.better), f"{one.better.p:.3f}", one.verdict),
        )
        for one in found
    )
    return Table("B against A", header, rows)


def _value(quantity: str, value: float) -> str:
    if quantity == "peak_memory_bytes":
        return f"{value / 1e6:.0f} MB"
    return f"{value:.1f}" if quantity in RATES else f"{value:.4f}"


def _ratio(found: Comparison) -> str:
    interval = f" ({found.low:.2f}–{found.high:.2f})" if found.low is not None and found.high is not None else ""
    return f"{found.ratio:.2f}x{interval}"


def notes(a: TtftReport, b: TtftReport, found: list[Compared]) -> list[str]:
    """How to read the table, and what else differs between the reports."""
    lines = [
        f"Above 1x B is better: medians' ratio, in brackets its 95 % interval, p by Mann and Whitney's test. Of "
        f"comparisons without a difference {LEVEL:.0%} are called one by chance; here are {len(found)}.",
        f"A: {a.started}, load {a.environment['load_average']:.1f}; B: {b.started}, load "
        f"{b.environment['load_average']:.1f}. What changed on the machine between the two counts as a difference.",
    ]
    for words, keys in (("Machines", MACHINE), ("Versions", VERSIONS)):
        differing = _differences(a.environment, b.environment, keys)
        if differing:
            lines.append(f"{words} differ: {'; '.join(differing)}.")
    hashes = {model.name: model.sha256 for model in a.finished}
    changed = [model.name for model in b.finished if hashes.get(model.name, model.sha256) != model.sha256]
    if changed:
        lines.append(f"The weights differ: {', '.join(changed)}.")
    settings = _differences(a.settings, b.settings, ("generate", "dtype", "draft", "prompt"))
    if settings:
        lines.append(f"Settings differ: {'; '.join(settings)}.")
    return lines


def to_dict(a: TtftReport, b: TtftReport, found: list[Compared]) -> dict[str, Any]:
    """For --json."""
    return {
        "schema": SCHEMA,
        "a": {"started": a.started, "environment": a.environment},
        "b": {"started": b.started, "environment": b.environment},
        "notes": notes(a, b, found),
        "comparisons": [one.to_dict() for one in found],
    }
