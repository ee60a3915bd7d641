"""`russet bench prefill`: what every way to prefill costs in quality, and what it saves."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from russet.engine.cli.bench_output import check_writable, listener, write_json
from russet.engine.cli.options import DEFAULT_MODEL, load_model

if TYPE_CHECKING:
    from russet.bench.gate import Level
    from russet.bench.prefill_report import PrefillReport

TASKS = "nq:10,squad,needle:2048"
STRATEGIES = ("exact", "lazyllm:0.5", "specprefill:0.3", "superposition:2", "truncate:0.5")
GATED = ("exact", "lazyllm:0.5", "specprefill:0.3", "superposition:2")


class Names(click.ParamType):
    """`NAME,NAME,...`, without repetitions."""

    name = "NAME,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        names = value if isinstance(value, tuple) else tuple(dict.fromkeys(str(value).split(",")))
        if not all(names):
            self.fail(f"{value!r} has an empty name in it; separate names by single commas.", param, ctx)
        return names


@click.command()
@click.option("-m", "--model", default=DEFAULT_MODEL, show_default=True, help="Catalog name, folder, or repository.")
@click.option("--data", type=click.Path(path_type=Path), help="Folder of the evaluation data.")
@click.option("--tasks", type=Names(), default=TASKS, show_default=True, help="What to score.")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="Rows of every task.")
@click.option("--prefill", "names", type=Names(), help=f"What to compare.  [default: {','.join(STRATEGIES)}]")
@click.option("--draft", metavar="MODEL|SHARE", help="SpecPrefill's draft: a model, or a share of the model's layers.")
@click.option(
    "--dtype", type=click.Choice(["float32", "float16", "bfloat16"]), help="Precision that every strategy computes in."
)
@click.option(
    "--json",
    "json_file",
    is_flag=False,
    flag_value="-",
    metavar="[FILE]",
    help="Write every row as JSON to FILE, or to standard output in place of the table.",
)
@click.option("--plot", metavar="FILE", help="Draw score against speed-up as a PNG, SVG or PDF file.")
@click.option("--from", "source", type=click.Path(path_type=Path), help="Show a file of --json; measure nothing.")
@click.option("--gate", is_flag=True, help="Check the lossy strategies against their recorded levels, without data.")
@click.option("--record", is_flag=True, help="With --gate: record what is measured as the new levels.")
def prefill(source: Path | None, gate: bool, record: bool, **options: Any) -> None:
    """Score and time prefill strategies on the same rows, taking turns.

    Tasks are nq:DOCUMENTS, squad, needle:TOKENS, kv:PAIRS and multi_news. Strategies are those of `russet generate
    --prefill`, superposition:N+cached, which finds its documents computed already, and truncate:SHARE, which leaves out
    the middle of the prompt. docs/benchmarks.md defines every number and says where the data come from. Ctrl-C shows
    what was finished and exits with 130.
    """
    _check_usage(source, gate, record, options)
    for file in (options["json_file"], options["plot"]):
        check_writable(file)
    if options["plot"]:
        from russet.bench.plots import require_matplotlib

        require_matplotlib()
    if source is not None:
        from russet.bench.prefill_report import read_report

        _publish(read_report(source), options["json_file"], options["plot"])
    elif gate:
        _gate(record, **options)
    else:
        _measure(**options)


def _check_usage(source: Path | None, gate: bool, record: bool, options: dict[str, Any]) -> None:
    """Refuse what contradicts itself, before a model is loaded."""
    if record and not gate:
        raise click.UsageError("--record belongs to --gate.")
    if gate and (source or options["plot"]):
        raise click.UsageError("--gate neither draws nor reads results; leave out --from and --plot.")
    if source is None and not gate and options["data"] is None:
        raise click.UsageError("Name the folder of the evaluation data with --data, or use --gate, which needs none.")


def _measure(
    model: str,
    data: Path,
    tasks: tuple[str, ...],
    limit: int,
    names: tuple[str, ...] | None,
    draft: str | None,
    dtype: str | None,
    json_file: str | None,
    plot: str | None,
) -> None:
    """Measure and publish; what was finished is published also where the rest fails or is interrupted."""
    from russet.bench.prefill import Plan, fill, new_report
    from russet.bench.prefill_contenders import contenders
    from russet.bench.tasks import parse_task

    plan = Plan(tuple(parse_task(task) for task in tasks), data, limit)
    with tempfile.TemporaryDirectory() as documents:
        found = contenders(names or STRATEGIES, Path(documents), draft)
        loaded = load_model(model, dtype, None)
        report = new_report(loaded, plan, found, dtype)
        try:
            with listener() as listen:
                fill(report, loaded, plan, found, listen)
        except BaseException:
            report.interrupted = True
            if report.finished:
                _publish(report, json_file, plot)
            raise
    _publish(report, json_file, plot)


def _publish(report: PrefillReport, json_file: str | None, plot: str | None) -> None:
    from russet.bench.prefill_tables import show

    if json_file != "-":
        show(report, terminal=sys.stdout.isatty())
    if json_file is not None:
        # Thousands of rows: one line a value would be many times as long.
        write_json(report.to_dict(), json_file, indent=None)
    if plot is not None and report.finished:
        from russet.bench.plots import score_plot

        score_plot(report, Path(plot))


def _gate(
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

    loaded = load_model(model, dtype, None)
    sha256 = model_hash(loaded.path)
    recorded = {} if record else gate_levels.read_levels(sha256, loaded.name)
    chosen = (EXACT, *names) if names else tuple(recorded) or GATED
    unknown = [name for name in chosen if recorded and name not in recorded]
    if unknown:
        raise GateError(f"No level is recorded for {unknown[0]}; there are levels for {', '.join(recorded)}.")
    with tempfile.TemporaryDirectory() as documents, listener() as listen:
        measured = gate.measure(loaded, contenders(chosen, Path(documents), draft), listen)
    if record:
        recorded = gate_levels.record(measured, sha256, loaded.name)
    _show_gate(measured, recorded, json_file, {"model": loaded.name, "sha256": sha256, "environment": environment()})
    found = gate_levels.shortfalls(measured, {name: recorded[name] for name in measured})
    if found:
        raise GateError(f"The gate is shut: {'; '.join(found)}; find what changed, or record new levels with --record.")


def _show_gate(
    measured: dict[str, Level], recorded: dict[str, Level], json_file: str | None, stamps: dict[str, Any]
) -> None:
    from russet.bench import drawing, gate_levels

    if json_file != "-":
        drawing.show([gate_levels.table(measured, recorded)], [], terminal=sys.stdout.isatty())
    if json_file is not None:
        levels = {name: {"measured": measured[name].to_dict(), "least": recorded[name].to_dict()} for name in measured}
        write_json({**stamps, "levels": levels}, json_file)
