"""What a task's rows say of one strategy beside exact prefill, row by row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from russet.bench.intervals import Estimate, difference, mean, median, proportion, retention
from russet.bench.prefill_run import RowRun


@dataclass(frozen=True, slots=True)
class Summary:
    """Estimates with 95 % intervals; ratios are medians of the rows' ratios, and `rows` is how many there are.

    `computed` is the share of exact prefill's (token, layer) pairs that the strategy computed, and `layer_tokens` the
    mean tokens a layer; None where the model does not tell. `fell_back` counts rows in which another strategy ran.
    What is said of scores or times is None where no row has any.
    """

    rows: int
    score: Estimate | None
    difference: Estimate | None
    retention: Estimate | None
    prefill_s: Estimate | None
    speed_up: Estimate | None
    decode_ratio: Estimate | None
    computed: float | None
    layer_tokens: list[float] | None
    revived: float
    fell_back: int
    note: str
    """Why it fell back, the first time that it did."""
    peak_memory_bytes: int

    def to_dict(self) -> dict[str, Any]:
        raw = {name: getattr(self, name) for name in self.__slots__}
        return {name: value.to_dict() if isinstance(value, Estimate) else value for name, value in raw.items()}


def summarise(ours: Sequence[RowRun], exact: Sequence[RowRun], binary: bool) -> Summary:
    """`ours` and `exact` are of the same rows, in the same order; `binary` says that all scores are 0 or 1."""
    pairs = list(zip(ours, exact, strict=True))
    scored = [(a.score, b.score) for a, b in pairs if a.score is not None and b.score is not None]
    timed = [(a.prefill_s, b.prefill_s) for a, b in pairs if a.prefill_s is not None and b.prefill_s is not None]
    scores, theirs = [a for a, _ in scored], [b for _, b in scored]
    rates = [a.decode_tps / b.decode_tps for a, b in pairs if a.decode_tps and b.decode_tps]
    notes = [run.note for run in ours if run.note]
    layers = [run.layer_tokens for run in ours]
    return Summary(
        rows=len(ours),
        score=(proportion(scores) if binary else mean(scores)) if scores else None,
        difference=difference(scores, theirs) if scores else None,
        retention=retention(scores, theirs),
        prefill_s=median([a for a, _ in timed]) if timed else None,
        speed_up=median([b / a for a, b in timed]) if timed else None,
        decode_ratio=median(rates) if rates else None,
        computed=_computed(ours, exact),
        layer_tokens=[sum(found) / len(found) for found in zip(*layers, strict=True)] if all(layers) else None,
        revived=sum(run.revived for run in ours) / len(ours),
        fell_back=len(notes),
        note=notes[0] if notes else "",
        peak_memory_bytes=max(run.peak_memory_bytes for run in ours),
    )


def _computed(ours: Sequence[RowRun], exact: Sequence[RowRun]) -> float | None:
    shares = [
        sum(a.layer_tokens) / sum(b.layer_tokens)
        for a, b in zip(ours, exact, strict=True)
        if a.layer_tokens and b.layer_tokens
    ]
    return sum(shares) / len(shares) if len(shares) == len(ours) else None
