"""The recorded levels of the quality gate: gate.json beside this file, and what falls under them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from russet.bench.drawing import Table
from russet.bench.gate import NEEDLES, Level, setup_hash
from russet.engine.errors import BenchmarkDataError, GateError, StorageError

FILE = Path(__file__).with_name("gate.json")

AGREEMENT_MARGIN = 0.05
"""What another machine's rounding may change; for needles it is one of them."""


def read_levels(sha256: str, name: str, file: Path | None = None) -> dict[str, Level]:
    """The levels recorded for a model, by strategy; GateError where there are none of the gate as it is now."""
    file = file or FILE
    found = _read(file).get(sha256)
    if found is None:
        raise GateError(
            f"{file} has no levels for {name} (sha256 {sha256[:12]}); record them with --gate --record where they "
            "are known to be good."
        )
    if found["setup"] != setup_hash():
        raise GateError(
            f"{file} has levels of {name} for other prompts than the gate has now; record them anew with --gate "
            "--record where they are known to be good."
        )
    return {mode: Level(level["needle"], level["agreement"]) for mode, level in found["levels"].items()}


def record(
    measured: Mapping[str, Level], sha256: str, name: str, file: Path | None = None, *, others: bool = False
) -> dict[str, Level]:
    """Write what was measured, less the margins, as a model's levels; they are returned.

    With `others`, what is recorded for the model's other modes stays. Raises GateError where a mode did not run.
    """
    file = file or FILE
    for mode, level in measured.items():
        if level.note:
            raise GateError(f"{mode} did not run ({level.note}), so there is no level to record; leave it out.")
    levels = {mode: _lowered(level) for mode, level in measured.items()}
    models = _read(file) if file.exists() else {}
    recorded = {mode: {"needle": level.needle, "agreement": level.agreement} for mode, level in levels.items()}
    setup, before = setup_hash(), models.get(sha256)
    if others and before and before["setup"] == setup:
        recorded = before["levels"] | recorded
    models[sha256] = {"name": name, "setup": setup, "levels": recorded}
    partial = file.with_name(f".{file.name}.partial")
    try:
        partial.write_text(json.dumps(models, indent=2) + "\n", encoding="utf-8")
        partial.replace(file)
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
    needle = math.floor(100 * max(0.0, level.needle - 1 / len(NEEDLES))) / 100
    return Level(needle, agreement)


def _read(file: Path) -> dict[str, dict]:
    try:
        models = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BenchmarkDataError(f"{file} is not readable JSON ({error}); restore it from the repository.") from error
    if not isinstance(models, dict) or not all(map(_well_formed, models.values())):
        raise BenchmarkDataError(f"{file} does not hold levels by model; restore it from the repository.")
    return models


def _well_formed(entry: Any) -> bool:
    """Whether an entry has the fields that `record` writes, each level a share from 0 to 1."""
    try:
        shares = [level[quantity] for level in entry["levels"].values() for quantity in ("needle", "agreement")]
        return all(isinstance(entry[key], str) for key in ("name", "setup")) and all(
            0 <= share <= 1 for share in shares
        )
    except (AttributeError, KeyError, TypeError):
        return False
