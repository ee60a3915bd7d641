"""The recorded levels of the quality gate: gate.json beside this file, and what falls under them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

from russet.bench.drawing import Table
from russet.bench.gate import PROMPTS, Level
from russet.engine.errors import BenchmarkDataError, GateError, StorageError

FILE = Path(__file__).with_name("gate.json")

AGREEMENT_MARGIN = 0.05
"""What another machine's rounding may change; for needles it is one of them."""


def read_levels(sha256: str, name: str, file: Path | None = None) -> dict[str, Level]:
    """The levels recorded for a model, by strategy; GateError where there are none."""
    file = file or FILE
    found = _read(file).get(sha256)
    if found is None:
        raise GateError(
            f"{file} has no levels for {name} (sha256 {sha256[:12]}); record them with --gate --record where they "
            "are known to be good."
        )
    return {mode: Level(level["needle"], level["agreement"]) for mode, level in found["levels"].items()}


def record(measured: Mapping[str, Level], sha256: str, name: str, file: Path | None = None) -> dict[str, Level]:
    """Write what was measured, less the margins, as a model's levels. Raises GateError where a mode did not run."""
    file = file or FILE
    for mode, level in measured.items():
        if level.note:
            raise GateError(f"{mode} did not run ({level.note}), so there is no level to record; leave it out.")
    levels = {mode: _lowered(level) for mode, level in measured.items()}
    models = _read(file) if file.exists() else {}
    recorded = {mode: {"needle": level.needle, "agreement": level.agreement} for mode, level in levels.items()}
    models[sha256] = {"name": name, "levels": recorded}
    try:
        file.write_text(json.dumps(models, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{file} cannot be written ({error.strerror}); record in a checkout of Russet.") from error
    return levels


def shortfalls(measured: Mapping[str, Level], recorded: Mapping[str, Level]) -> list[str]:
    """What keeps the gate shut, a clause each."""
    found = []
    for mode, level in recorded.items():
        ours = measured[mode]
        if ours.note:
            found.append(f"{mode} did not run ({ours.note})")
        for quantity in ("needle", "agreement"):
            value, least = getattr(ours, quantity), getattr(level, quantity)
            if value < least:
                found.append(f"{mode} has {value:.0%} in {quantity}, under the recorded {least:.0%}")
    return found


def table(measured: Mapping[str, Level], recorded: Mapping[str, Level]) -> Table:
    """Measured values beside the least that passes."""
    rows = []
    for mode, level in measured.items():
        least = recorded[mode]
        rows.append(
            (mode, *(f"{share:.0%}" for share in (level.needle, least.needle, level.agreement, least.agreement)))
        )
    return Table("Quality gate", ("prefill", "needles found", "at least", "exact's tokens", "at least"), tuple(rows))


def _lowered(level: Level) -> Level:
    agreement = math.floor(100 * max(0.0, level.agreement - AGREEMENT_MARGIN)) / 100
    needle = math.floor(100 * max(0.0, level.needle - 1 / PROMPTS)) / 100
    return Level(needle, agreement)


def _read(file: Path) -> dict[str, dict]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BenchmarkDataError(f"{file} is not readable JSON ({error}); restore it from the repository.") from error
