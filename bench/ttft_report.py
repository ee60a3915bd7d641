"""The result of `russet bench ttft` as data: every run of every contender, and what follows from them.

ttft.schema.json beside this file describes the JSON field by field.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from russet.bench.cold_start import ColdRun
from russet.bench.report_file import read_report_file
from russet.bench.significance import Comparison, compare
from russet.bench.stats import Summary
from russet.bench.ttft_contenders import BASELINE
from russet.bench.ttft_run import Run

SCHEMA = "russet-bench-ttft/1"
"""Changes its number whenever a field changes its meaning or goes."""

QUANTITIES = ("ttft_s", "prefill_s", "prefill_tps", "decode_tps", "peak_memory_bytes")
RATES = ("prefill_tps", "decode_tps")
"""The quantities of which more is better."""


@dataclass(frozen=True, slots=True)
class Contended:
    """What a contender is: its engine, its way to prefill, and in words what it computes with."""

    engine: str
    prefill: str
    setting: str
    weights_bytes: int | None


@dataclass(frozen=True, slots=True)
class Predicted:
    """What the roofline says of exact prefill and of decoding on the chip that was detected."""

    chip: str
    prefill_s: float
    decode_tps: float


@dataclass
class LengthRuns:
    """All finished runs at one prompt length, contender -> runs in the order of the rounds."""

    prompt_tokens: int
    prediction: Predicted | None = None
    runs: dict[str, list[Run]] = field(default_factory=dict)

    @property
    def finished(self) -> dict[str, list[Run]]:
        """The contenders that have a run."""
        return {name: runs for name, runs in self.runs.items() if runs}

    def to_dict(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "prediction": asdict(self.prediction) if self.prediction else None,
            "contenders": {name: self._contender(name) for name in self.finished},
        }

    def _contender(self, name: str) -> dict[str, Any]:
        runs = self.runs[name]
        speed_ups = {key: self.speed_up(name, key) for key in ("ttft_s", "prefill_s", "decode_tps")}
        return {
            "summary": {key: found.to_dict() for key, found in summaries(runs).items()},
            "speed_up": {key: found.to_dict() if found else None for key, found in speed_ups.items()},
            "roofline_share": self.roofline_share(name),
            "runs": [run.to_dict() for run in runs],
        }

    def speed_up(self, name: str, quantity: str) -> Comparison | None:
        """How many times as fast as Russet's exact prefill; None for that itself, and where one has no value."""
        if name == BASELINE:
            return None
        ours, base = summaries(self.runs[name]).get(quantity), summaries(self.runs.get(BASELINE, [])).get(quantity)
        if ours is None or base is None:
            return None
        return faster(quantity, ours, base)

    def roofline_share(self, name: str) -> dict[str, float] | None:
        """What was reached of the prediction; a lossy prefill is held against the exact one, and may be above 1."""
        if self.prediction is None:
            return None
        found = summaries(self.runs[name])
        shares = {"prefill": self.prediction.prefill_s / found["prefill_s"].median}
        if "decode_tps" in found:
            shares["decode"] = found["decode_tps"].median / self.prediction.decode_tps
        return shares

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> LengthRuns:
        prediction = Predicted(**raw["prediction"]) if raw["prediction"] else None
        runs = {name: [Run(**run) for run in found["runs"]] for name, found in raw["contenders"].items()}
        return cls(raw["prompt_tokens"], prediction, runs)


@dataclass
class ModelResult:
    """One model: its stamp, its contenders and their runs; `left_out` are default lengths that its context is short of.

    `bits` is None where weights are not packed, and `parameters` for architectures that are not Russet's own.
    """

    name: str
    sha256: str | None
    bits: int | None
    parameters: int | None
    context: int
    kv_bytes_per_token: int | None
    load_s: float
    contenders: dict[str, Contended] = field(default_factory=dict)
    left_out: list[int] = field(default_factory=list)
    lengths: list[LengthRuns] = field(default_factory=list)
    cold_start: dict[str, list[ColdRun]] = field(default_factory=dict)

    @property
    def finished(self) -> list[LengthRuns]:
        return [found for found in self.lengths if found.finished]

    def to_dict(self) -> dict[str, Any]:
        stamp = ("name", "sha256", "bits", "parameters", "context", "kv_bytes_per_token", "load_s", "left_out")
        return {
            **{key: getattr(self, key) for key in stamp},
            "contenders": {name: asdict(found) for name, found in self.contenders.items()},
            "results": [found.to_dict() for found in self.finished],
            "cold_start": {name: _cold(runs) for name, runs in self.cold_start.items() if runs},
        }

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> ModelResult:
        given = {key: value for key, value in raw.items() if key not in ("contenders", "results", "cold_start")}
        cold = {
            name: [ColdRun(*pair) for pair in zip(run["first_output_s"]["values"], run["end_s"]["values"], strict=True)]
            for name, run in raw["cold_start"].items()
        }
        contenders = {name: Contended(**found) for name, found in raw["contenders"].items()}
        return cls(
            **given,
            contenders=contenders,
            lengths=[LengthRuns.from_dict(found) for found in raw["results"]],
            cold_start=cold,
        )


def _cold(runs: list[ColdRun]) -> dict[str, Any]:
    return {
        "first_output_s": Summary(tuple(run.first_output_s for run in runs)).to_dict(),
        "end_s": Summary(tuple(run.end_s for run in runs)).to_dict(),
    }


@dataclass
class TtftReport:
    """Filled while the benchmark runs, so that what an interruption leaves is a report as well."""

    environment: dict[str, Any]
    settings: dict[str, Any]
    started: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    ended: str | None = None
    load_average_at_end: float | None = None
    interrupted: bool = False
    models: list[ModelResult] = field(default_factory=list)

    @property
    def finished(self) -> list[ModelResult]:
        return [model for model in self.models if model.finished or any(model.cold_start.values())]

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "started": self.started,
            "ended": self.ended,
            "interrupted": self.interrupted,
            "environment": self.environment,
            "load_average_at_end": self.load_average_at_end,
            "settings": self.settings,
            "models": [model.to_dict() for model in self.finished],
        }

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> TtftReport:
        """The report that `to_dict` was called on; summaries are made from the runs anew."""
        models = [ModelResult.from_dict(model) for model in raw["models"]]
        stamps = ("environment", "settings", "started", "ended", "load_average_at_end", "interrupted")
        return cls(*(raw[key] for key in stamps), models)  # pyright: ignore[reportCallIssue]


def summaries(runs: list[Run]) -> dict[str, Summary]:
    """Per quantity, its values over the runs; a quantity that a run does not have is left out."""
    values = {name: [getattr(run, name) for run in runs] for name in QUANTITIES}
    return {name: Summary(tuple(found)) for name, found in values.items() if found and None not in found}


def faster(quantity: str, ours: Summary, theirs: Summary) -> Comparison:
    """How many times as good ours are: for times and bytes theirs over ours, for rates ours over theirs."""
    pair = (ours, theirs) if quantity in RATES else (theirs, ours)
    return compare(*(found.values for found in pair))


def read_report(path: Path) -> TtftReport:
    """A report of `russet bench ttft --json`."""
    return read_report_file(path, SCHEMA, TtftReport.from_dict)
