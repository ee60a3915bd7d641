"""The result of `russet bench decode` as data: everything that was measured, and what follows from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from russet.bench.base import OURS, Measurement
from russet.bench.decode import LengthResult
from russet.bench.stats import Ratio, Summary, ratio
from russet.bench.step import StepCost

SCHEMA = "russet-bench-decode/2"
"""Changes its number whenever a field changes its meaning or goes; docs/benchmarks.md describes it."""


@dataclass
class Report:
    """Filled while the benchmark runs, so that what an interruption leaves is a report as well."""

    model: dict[str, Any]
    environment: dict[str, Any]
    settings: dict[str, Any]
    contenders: dict[str, str]
    """Name -> what it computes with."""
    started: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    lengths: list[LengthResult] = field(default_factory=list)
    steps: dict[str, StepCost] = field(default_factory=dict)
    copy_bytes_per_s: float | None = None
    as_installed: Measurement | None = None
    as_installed_prompt_tokens: int = 0
    interrupted: bool = False

    @property
    def peers(self) -> list[str]:
        return [name for name in self.contenders if name != OURS]

    @property
    def finished(self) -> list[LengthResult]:
        """The prompt lengths that have at least one run of every contender."""
        return [result for result in self.lengths if result.complete]

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "started": self.started,
            "interrupted": self.interrupted,
            "model": self.model,
            "environment": self.environment,
            "settings": self.settings,
            "contenders": self.contenders,
            "steps": {name: cost.to_dict() for name, cost in self.steps.items()},
            "copy_bytes_per_s": self.copy_bytes_per_s,
            "results": [self._length(result) for result in self.finished],
            "as_installed": self._as_installed(),
        }

    def _length(self, result: LengthResult) -> dict[str, Any]:
        return {
            "prompt_tokens": result.prompt_tokens,
            "generate": result.generate,
            "summary": {
                name: {quantity: summary.to_dict() for quantity, summary in summaries(runs).items()}
                for name, runs in result.runs.items()
            },
            "ratios": {peer: self._ratios(result, peer) for peer in self.peers},
            "runs": {name: [run.to_dict() for run in runs] for name, runs in result.runs.items()},
        }

    def _ratios(self, result: LengthResult, peer: str) -> dict[str, Any]:
        difference = result.first_difference(OURS, peer)
        ratios = speed_ratios(result, peer)
        return {
            **{quantity: value.to_dict() for quantity, value in ratios.items()},
            "same_tokens": difference is None,
            "first_difference": difference,
        }

    def _as_installed(self) -> dict[str, Any] | None:
        if self.as_installed is None:
            return None
        return {"prompt_tokens": self.as_installed_prompt_tokens, "run": self.as_installed.to_dict()}


def summaries(runs: list[Measurement]) -> dict[str, Summary]:
    """Per quantity, its values over the runs; a decode rate of 0 stands for a single token, which has no interval."""
    return {
        "prefill_s": Summary(tuple(run.timings.prefill_s for run in runs)),
        "prefill_tps": Summary(tuple(run.timings.prefill_tps for run in runs)),
        "decode_tps": Summary(tuple(run.timings.decode_tps for run in runs)),
        "peak_memory_bytes": Summary(tuple(run.peak_memory_bytes for run in runs)),
    }


def speed_ratios(result: LengthResult, peer: str) -> dict[str, Ratio]:
    """How many times as fast as a peer Russet is, in "prefill" and, where more than one token was drawn, "decode"."""
    ours, theirs = summaries(result.runs[OURS]), summaries(result.runs[peer])
    quantities = (
        {"prefill": "prefill_tps", "decode": "decode_tps"} if result.generate > 1 else {"prefill": "prefill_tps"}
    )
    return {name: ratio(ours[field].values, theirs[field].values) for name, field in quantities.items()}
