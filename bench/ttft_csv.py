"""A report of `russet bench ttft` as CSV: one line a run, for spreadsheets and data frames."""

from __future__ import annotations

import csv
from typing import TextIO

from russet.bench.ttft_report import QUANTITIES, TtftReport

COLUMNS = (
    *("started", "device", "processor", "gpu", "russet", "mlx", "model", "prompt_tokens", "contender", "run"),
    *QUANTITIES,
    *("layer_tokens_mean", "revived", "ran", "exact", "thermal", "memory_pressure"),
)


def write_csv(report: TtftReport, file: TextIO) -> None:
    """Write every finished run; what an engine does not tell is empty."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    found = report.environment
    stamp = [report.started, *(found[key] for key in ("device", "cpu", "gpu", "russet", "mlx"))]
    for model in report.finished:
        for held in model.finished:
            for name, runs in held.finished.items():
                for number, run in enumerate(runs, 1):
                    layers = sum(run.layer_tokens) / len(run.layer_tokens) if run.layer_tokens else None
                    values = [getattr(run, quantity) for quantity in QUANTITIES]
                    rest = (layers, run.revived, run.ran, run.exact, run.thermal, run.memory_pressure)
                    writer.writerow([*stamp, model.name, held.prompt_tokens, name, number, *values, *rest])
