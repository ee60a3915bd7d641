"""`russet bench prefill --gate`: lossy strategies against the levels that are recorded for a model."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from russet.engine.cli.bench_output import check_writable, listener, write_json
from russet.engine.cli.options import load_model
from russet.engine.timing import now

if TYPE_CHECKING:
    from russet.bench.gate import Level

PREDICTED = "kv-prediction:smollm2-135m-kvp-0.5"
GATED = ("exact", "lazyllm:0.5", "specprefill:0.5", "superposition:2", PREDICTED, f"{PREDICTED}@0.15")


def check_gate(
    record: bool,
    model: str,
    names: tuple[str, ...] | None,
    draft: str | None,
    dtype: str | None,
    json_file: str | None,
    **_: Any,
) -> None:
    """Raise GateError where a mode falls short; `names` are, unless given, those of which levels are recorded."""
    from russet.bench import gate, gate_levels
    from russet.bench.environment import environment, model_hash
    from russet.bench.prefill_contenders import EXACT, contenders
    from russet.engine.errors import GateError

    if record:
        check_writable(str(gate_levels.FILE))
    loaded = load_model(model, dtype, None)
    sha256 = model_hash(loaded.path)
    recorded = {} if record else gate_levels.read_levels(sha256, loaded.name)
    chosen = (EXACT, *names) if names else tuple(filter(_can_run, recorded or GATED))
    unknown = [name for name in chosen if recorded and name not in recorded]
    if unknown:
        raise GateError(f"No level is recorded for {unknown[0]}; there are levels for {', '.join(recorded)}.")
    started = now()
    with tempfile.TemporaryDirectory() as documents, listener() as listen:
        measured = gate.measure(loaded, contenders(chosen, Path(documents), draft or gate.DRAFT), listen)
    seconds = now() - started
    if record:
        recorded = gate_levels.record(measured, sha256, loaded.name, others=bool(names))
    stamps = {"model": loaded.name, "sha256": sha256, "environment": environment(), "seconds": seconds}
    _show(measured, recorded, json_file, stamps)
    found = gate_levels.shortfalls(measured, {name: recorded[name] for name in measured})
    if found:
        raise GateError(f"The gate is shut: {'; '.join(found)}; find what changed, or record new levels with --record.")


def _can_run(mode: str) -> bool:
    """Whether a mode's predictor, if it has one, is here; a sentence says where it is not."""
    from russet.models.catalog import PREDICTORS
    from russet.models.shipped import shipped

    predictor = mode.partition(":")[2].partition("@")[0]
    if predictor not in PREDICTORS or shipped(predictor) is not None:
        return True
    click.echo(f"Left out: {mode}, since {predictor} comes with a clone of the repository only.", err=True)
    return False


def _show(
    measured: dict[str, Level], recorded: dict[str, Level], json_file: str | None, stamps: dict[str, Any]
) -> None:
    from russet.bench import drawing, gate_levels

    if json_file != "-":
        taken = f"{stamps['model']}: {stamps['seconds']:.0f} s."
        drawing.show([gate_levels.table(measured, recorded)], [taken], terminal=sys.stdout.isatty())
    if json_file is not None:
        levels = {name: {"measured": measured[name].to_dict(), "least": recorded[name].to_dict()} for name in measured}
        write_json({**stamps, "levels": levels}, json_file)
