"""`russet bench kernels`: what kernels take on this GPU beside MLX's own operations, and how near to a copy they come.

Each group of cases has a file of its own, kernels_*.py; kernels_clock.py times them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from russet.bench import kernels_attention, kernels_layer, kernels_matvec, kernels_sparse
from russet.bench.cells import machine_line
from russet.bench.drawing import Table
from russet.bench.environment import environment
from russet.bench.kernels_clock import Case, Reached, Timing, copy_bytes_per_s, time_case
from russet.bench.stats import ratio
from russet.engine.errors import InvalidOptionError
from russet.kernels.backend import backend
from russet.kernels.base import mode

SCHEMA = "russet-bench-kernels/1"
"""Changes its number whenever a field changes its meaning or goes; docs/benchmarks.md describes it."""


@dataclass
class KernelReport:
    """Filled while the benchmark runs, so that what an interruption leaves is a report as well."""

    environment: dict[str, Any]
    copy_bytes_per_s: float
    timings: list[Timing] = field(default_factory=list)
    started: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    interrupted: bool = False

    @property
    def finished(self) -> list[Timing]:
        """All that is there: a case is added when it is through."""
        return self.timings

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "started": self.started,
            "interrupted": self.interrupted,
            "environment": self.environment,
            "copy_bytes_per_s": self.copy_bytes_per_s,
            "cases": [
                {"name": timing.name, "sides": {name: self._side(side) for name, side in timing.sides.items()}}
                for timing in self.timings
            ],
        }

    def _side(self, side: Reached) -> dict[str, Any]:
        rates = {
            "bytes_per_s": side.bytes_per_s,
            "of_copy": side.bytes_per_s / self.copy_bytes_per_s,
            "operations_per_s": side.operations_per_s,
        }
        return {**asdict(side), "seconds": side.seconds.to_dict(), **rates}


def all_cases() -> list[Case]:
    groups = (kernels_matvec, kernels_layer, kernels_sparse, kernels_attention)
    return [case for group in groups for case in group.cases()]


def chosen_cases(only: Sequence[str]) -> list[Case]:
    """The cases whose names hold one of the texts, or all. Raises InvalidOptionError for a text that none holds."""
    cases = all_cases()
    for text in only:
        if not any(text in case.name for case in cases):
            groups = dict.fromkeys(case.name.split()[0] for case in cases)
            raise InvalidOptionError(f"No case is named like {text!r}; names begin with {', '.join(groups)}.")
    return [case for case in cases if not only or any(text in case.name for text in only)]


def new_report() -> KernelReport:
    """An empty report, a copy timed. Raises InvalidOptionError where no kernel can run."""
    if backend() is None:
        raise InvalidOptionError("Kernels are timed on a GPU, and MLX has none here; run it on one.")
    if mode() != "on":
        raise InvalidOptionError(f"Kernels do not run with RUSSET_KERNELS={mode()}; set it to on to time them.")
    return KernelReport(environment(), copy_bytes_per_s())


def fill(report: KernelReport, cases: Sequence[Case], listen: Callable[[str], None] = lambda _: None) -> None:
    """Time the cases one after the other; what an exception interrupts stays in the report as far as it came."""
    import mlx.core as mx

    for number, case in enumerate(cases):
        listen(f"{case.name} ({number + 1} of {len(cases)})")
        report.timings.append(time_case(case))
        mx.clear_cache()


def table(report: KernelReport) -> Table:
    """Every side of every case in a row."""
    header = ("case", "side", "us a call", "MB", "GB/s", "of a copy", "TFLOP/s", "time / russet")
    rows = []
    for timing in report.timings:
        ours = next(iter(timing.sides.values()))
        for name, side in timing.sides.items():
            found, against = side.seconds, ratio(side.seconds.values, ours.seconds.values)
            rows.append(
                (
                    timing.name,
                    name,
                    f"{found.median * 1e6:.1f} ({found.lowest * 1e6:.1f}–{found.highest * 1e6:.1f})",
                    f"{side.bytes / 1e6:.2f}",
                    f"{side.bytes_per_s / 1e9:.0f}",
                    f"{side.bytes_per_s / report.copy_bytes_per_s:.0%}",
                    f"{side.operations_per_s / 1e12:.0f}" if side.operations else "",
                    "" if side is ours else f"{against.median:.2f}x ({against.lowest:.2f}–{against.highest:.2f})",
                )
            )
    return Table("Kernels: time a call at full load, fresh weights each call", header, tuple(rows))


def notes(report: KernelReport) -> list[str]:
    """Where it was measured, what a copy reaches, and which kernels did not serve."""
    lines = [
        machine_line(report.environment),
        f"A copy reads and writes {report.copy_bytes_per_s / 1e9:.0f} GB/s.",
        "The host's work to launch a call bounds its time from below; a profiler tells the GPU's own.",
    ]
    lines += [
        f"{timing.name}: {side.note}." for timing in report.timings for side in timing.sides.values() if side.note
    ]
    return [*lines, "Interrupted: what was finished is shown."] if report.interrupted else lines
