"""`russet bench prefill`: what every way to prefill costs in quality, and what it saves."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from russet.engine.cli.bench_gate import check_gate
from russet.engine.cli.bench_options import Names, draft_option, dtype_option
from russet.engine.cli.bench_output import check_writable, fill_and_publish, json_option, write_json
from russet.engine.cli.bench_shape import chosen_bits, random_model, shape_options
from russet.engine.cli.lengths import Lengths
from russet.engine.cli.options import DEFAULT_MODEL, load_model

if TYPE_CHECKING:
    from russet.bench.decode import Listener
    from russet.bench.prefill_report import PrefillReport

TASKS = "nq:10,squad,needle:2048"
STRATEGIES = ("exact", "lazyllm:0.5", "specprefill:0.3", "superposition:2", "truncate:0.5")
OF_SHAPE = ("exact", "lazyllm:0.45", "lazyllm:0.22", "specprefill:0.3")
"""What is compared on a shape, whose random prompts have no documents."""


@click.command()
@click.option("-m", "--model", default=DEFAULT_MODEL, show_default=True, help="Catalog name, folder, or repository.")
@click.option("--data", type=click.Path(path_type=Path), help="Folder of the evaluation data.")
@click.option("--tasks", type=Names(), default=TASKS, show_default=True, help="What to score.")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="Rows of every task.")
@click.option("--prefill", "names", type=Names(), help=f"What to compare.  [default: {','.join(STRATEGIES)}]")
@draft_option()
@dtype_option()
@json_option("every row")
@click.option("--plot", metavar="FILE", help="Draw score against speed-up as a PNG, SVG or PDF file.")
@click.option(
    "--from",
    "sources",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Show a file of --json, or several joined row by row; measure nothing.",
)
@click.option("--gate", is_flag=True, help="Check the lossy strategies against their recorded levels, without data.")
@click.option("--record", is_flag=True, help="With --gate: record what is measured as the new levels.")
@shape_options
@click.option("--prompt-lengths", type=Lengths(), default="4096,16384", show_default=True, help="With --shape: tokens.")
@click.option("--generate", type=click.IntRange(2), default=64, show_default=True, help="With --shape: tokens drawn.")
@click.option("--repeat", type=click.IntRange(1), default=5, show_default=True, help="With --shape: runs a length.")
def prefill(sources: tuple[Path, ...], gate: bool, record: bool, shape: str | None, **options: Any) -> None:
    """Score and time prefill strategies on the same rows, taking turns; with --shape only time them.

    Tasks are nq:DOCUMENTS, squad, needle:TOKENS, kv:PAIRS and multi_news. Strategies are those of `russet generate
    --prefill`, superposition:N+cached, which finds its documents computed already, and truncate:SHARE, which leaves out
    the middle of the prompt. docs/benchmarks.md defines every number and says where the data come from. Ctrl-C shows
    what was finished and exits with 130.
    """
    _check_usage(sources, gate, record, shape, options)
    for file in (options["json_file"], options["plot"]):
        check_writable(file)
    if options["plot"]:
        from russet.bench.plot_style import require_matplotlib

        require_matplotlib()
    if sources:
        from russet.bench.prefill_join import joined
        from russet.bench.prefill_report import read_report
        from russet.bench.report_file import whole_reports

        with whole_reports(*sources):
            _publish(joined([read_report(source) for source in sources]), options["json_file"], options["plot"])
    elif gate:
        check_gate(record, **options)
    elif shape:
        _measure_shape(shape, **options)
    else:
        _measure(**options)


def _check_usage(
    sources: tuple[Path, ...], gate: bool, record: bool, shape: str | None, options: dict[str, Any]
) -> None:
    """Refuse what contradicts itself, before a model is loaded, and make a number of --bits."""
    options["bits"] = chosen_bits(shape, options["bits"])
    for name in _given(OF_TASKS if shape else OF_RANDOM_PROMPTS):
        if shape:
            raise click.UsageError(f"--shape is a model in memory that is only timed; leave out {name}.")
        raise click.UsageError(f"{name} belongs to --shape; tasks have prompts and replies of their own.")
    if shape:
        return
    if record and not gate:
        raise click.UsageError("--record belongs to --gate.")
    if gate and (sources or options["plot"]):
        raise click.UsageError("--gate neither draws nor reads results; leave out --from and --plot.")
    if not sources and not gate and options["data"] is None:
        raise click.UsageError("Name the folder of the evaluation data with --data, or use --gate, which needs none.")


OF_TASKS = ("model", "data", "tasks", "limit", "plot", "sources", "gate", "record")
OF_RANDOM_PROMPTS = ("prompt_lengths", "generate", "repeat")


def _given(names: tuple[str, ...]) -> list[str]:
    """Those of some parameters that are on the command line, as options are written."""
    context = click.get_current_context()
    written = {parameter.name: parameter.opts[-1] for parameter in context.command.params}
    return [written[name] for name in names if context.get_parameter_source(name) is ParameterSource.COMMANDLINE]


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
    **_: Any,
) -> None:
    """Score and time all tasks."""
    from russet.bench.prefill import Plan, fill, new_report
    from russet.bench.prefill_contenders import contenders
    from russet.bench.tasks import parse_task

    plan = Plan(tuple(parse_task(task) for task in tasks), data, limit)
    with tempfile.TemporaryDirectory() as documents:
        found = contenders(names or STRATEGIES, Path(documents), draft)
        loaded = load_model(model, dtype, None)
        report = new_report(loaded, plan, found, dtype)

        def run(listen: Listener) -> None:
            fill(report, loaded, plan, found, listen)

        fill_and_publish(report, run, lambda: _publish(report, json_file, plot))


def _measure_shape(
    shape: str,
    bits: int,
    names: tuple[str, ...] | None,
    draft: str | None,
    dtype: str | None,
    json_file: str | None,
    prompt_lengths: tuple[int, ...],
    generate: int,
    repeat: int,
    **_: Any,
) -> None:
    """Time random prompts on random weights."""
    from russet.bench.prefill_contenders import contenders
    from russet.bench.prefill_shape import ShapePlan, fill, new_report

    plan = ShapePlan(shape, bits, dtype, prompt_lengths, generate, repeat)
    with tempfile.TemporaryDirectory() as documents:
        found = contenders(names or OF_SHAPE, Path(documents), draft)
        model = random_model(shape, bits, dtype)
        report = new_report(model, plan, found)

        def run(listen: Listener) -> None:
            fill(report, model, plan, found, listen)

        fill_and_publish(report, run, lambda: _publish(report, json_file, None))


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
