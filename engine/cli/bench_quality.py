"""`russet bench quality`: what models know and can do, and what lossy modes and number formats cost of it."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from russet.engine.cli.bench_options import Names, draft_option, dtype_option
from russet.engine.cli.bench_output import check_writable, fill_and_publish, json_option, write_json
from russet.engine.cli.options import DEFAULT_MODEL, load_model

if TYPE_CHECKING:
    from russet.bench.decode import Listener
    from russet.bench.quality_report import QualityReport

TASKS = "wikitext,lambada,arc_easy,piqa,triviaqa,squad,needle"


@click.command()
@click.option(
    "-m", "--model", "models", type=Names(), default=DEFAULT_MODEL, show_default=True, help="One model, or several."
)
@click.option("--data", type=click.Path(path_type=Path), help="Folder of the evaluation data.")
@click.option("--tasks", type=Names(), default=TASKS, show_default=True, help="What to score.")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="Rows of every task.")
@click.option("--prefill", "names", type=Names(), default="exact", show_default=True, help="Strategies to compare.")
@draft_option()
@dtype_option()
@click.option(
    "--kv-bits", type=Names(), default="16", show_default=True, help="Bits of stored keys and values; 8 is lossy."
)
@json_option("every row")
@click.option("--from", "source", type=click.Path(path_type=Path), help="Show a file of --json; measure nothing.")
def quality(source: Path | None, json_file: str | None, data: Path | None, **options: Any) -> None:
    """Score models and prefill strategies on the same rows: perplexities and accuracies with 95 % intervals.

    Tasks are wikitext[:WINDOW], lambada, arc_easy, piqa, hellaswag, boolq, triviaqa and squad as lm-evaluation-harness
    defines them, and needle[:TOKENS], nq:DOCUMENTS, kv:PAIRS and multi_news as `russet bench prefill` does. A strategy
    is compared with exact prefill of the same model, an int8 cache with one of 16 bits, a model with the first one.
    docs/benchmarks.md defines every number and says where the data come from. Ctrl-C shows what was finished and exits
    with 130.
    """
    if source is None and data is None:
        raise click.UsageError("Name the folder of the evaluation data with --data.")
    if not {"8", "16"} >= set(options["kv_bits"]):
        raise click.UsageError(f"--kv-bits is {','.join(options['kv_bits'])}; it must be 16, 8, or 16,8.")
    check_writable(json_file)
    if source is not None:
        from russet.bench.quality_report import read_quality
        from russet.bench.report_file import whole_reports

        with whole_reports(source):
            _publish(read_quality(source), json_file)
    elif data is not None:
        _measure(data, json_file, **options)


def _measure(
    data: Path,
    json_file: str | None,
    models: tuple[str, ...],
    tasks: tuple[str, ...],
    limit: int,
    names: tuple[str, ...],
    draft: str | None,
    dtype: str | None,
    kv_bits: tuple[str, ...],
) -> None:
    """Score one model after the other, one of them in memory."""
    from russet.bench.environment import environment
    from russet.bench.model_names import short_names
    from russet.bench.prefill_contenders import contenders
    from russet.bench.quality import chosen
    from russet.bench.quality_report import QualityReport
    from russet.bench.quality_run import Plan, run

    plan = Plan(chosen(tasks), data, limit, [int(bits) for bits in kv_bits])
    settings = {"tasks": [task.name for task in plan.tasks], "limit": limit, "dtype": dtype}
    report = QualityReport(environment(), settings)
    with tempfile.TemporaryDirectory() as documents:
        found = contenders(names, Path(documents), draft)

        def fill(listen: Listener) -> None:
            for model, name in short_names(models).items():
                run(report, load_model(model, dtype, None), name, plan, found, listen)

        fill_and_publish(report, fill, lambda: _publish(report, json_file))


def _publish(report: QualityReport, json_file: str | None) -> None:
    from russet.bench.quality_tables import show

    if json_file != "-":
        show(report, terminal=sys.stdout.isatty())
    if json_file is not None:
        # Thousands of rows: one line a value would be many times as long.
        write_json(report.to_dict(), json_file, indent=None)
