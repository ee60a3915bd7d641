"""`russet bench ttft`: how long a user waits for the first text, and how fast the rest comes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from russet.bench.peers import LLAMA_CPP, PEERS, require_peer
from russet.engine.cli.bench_options import (
    Names,
    draft_option,
    dtype_option,
    generate_option,
    peer_option,
    repeat_option,
)
from russet.engine.cli.bench_output import check_writable, fill_and_publish, json_option, write_json
from russet.engine.cli.lengths import Lengths
from russet.engine.cli.options import DEFAULT_MODEL, load_model
from russet.engine.errors import BenchmarkDataError, PromptEncodingError

if TYPE_CHECKING:
    from russet.bench.scores import TaskScores
    from russet.bench.ttft_plan import Plan
    from russet.bench.ttft_report import TtftReport


@click.command()
@click.option("-m", "--model", "models", type=Names(), default=DEFAULT_MODEL, show_default=True, help="What to time.")
@click.option(
    "--prompt-lengths", type=Lengths(), help="Tokens of the prompts.  [default: those of 128,512,2048,8192 that fit]"
)
@click.option("--prompt-file", type=click.Path(), help="Text for the prompts in place of the book that is shipped.")
@click.option("--prefill", "prefills", type=Names(), default="exact", show_default=True, help="Ways to prefill.")
@draft_option()
@generate_option()
@repeat_option()
@click.option("--delay", type=click.FloatRange(0), default=0.0, metavar="SECONDS", help="Rest before every run.")
@peer_option(PEERS)
@click.option("--gguf", type=Names(), help="With --peer llama.cpp: the model as a GGUF file, one for each model.")
@click.option("--cold", is_flag=True, help="Also time whole processes, from start to first text.")
@dtype_option()
@json_option("every run")
@click.option("--csv", "csv_file", metavar="FILE", help="Write a line a run as CSV.")
@click.option("--markdown", is_flag=True, help="Print Markdown, also on a terminal.")
@click.option("--plot", metavar="DIR", help="Draw PNG files into this folder.")
@click.option("--quality", metavar="FILE", help="With --plot: scores to draw against the time to first token.")
@click.option("--from", "source", metavar="FILE", help="Show a file of --json; measure nothing.")
def ttft(source: str | None, **options: Any) -> None:
    """Time whole answers, text to text, everyone taking turns: models, prompt lengths, prefill modes and peers.

    TTFT runs from the text prompt to the first text, prefill from its tokens to the first token; decoding counts the
    intervals between tokens, and goes on past the end of the reply. Prefill modes are those of `russet generate
    --prefill`, as in exact,lazyllm:0.5, and truncate:SHARE, which leaves out the middle of the prompt.
    docs/benchmarks.md defines every number. Ctrl-C shows what was finished and exits with 130.
    """
    if options["quality"] and not options["plot"]:
        raise click.UsageError("--quality belongs to --plot.")
    scores = _check_outputs(**options)
    if source is not None:
        from russet.bench.report_file import whole_reports
        from russet.bench.ttft_report import read_report

        with whole_reports(Path(source)):
            _publish(read_report(Path(source)), scores, options)
        return
    plan = _plan(**options)
    for peer in plan.peers:
        require_peer(peer)
    _measure(plan, scores, options)


def _check_outputs(
    json_file: str | None, csv_file: str | None, plot: str | None, quality: str | None, **_: Any
) -> list[TaskScores]:
    """Refuse, before any work, what could not be written or read; the scores of the quality file."""
    for file in (json_file, csv_file):
        check_writable(file)
    if plot is None:
        return []
    from russet.bench.plot_style import require_matplotlib
    from russet.engine.storage import make_folder

    require_matplotlib()
    make_folder(Path(plot))
    if quality is None:
        return []
    from russet.bench.scores import read_scores

    return read_scores(Path(quality))


def _plan(
    models: tuple[str, ...],
    prefills: tuple[str, ...],
    peers: tuple[str, ...],
    gguf: tuple[str, ...] | None,
    prompt_file: str | None,
    **options: Any,
) -> Plan:
    """The options as a plan. Raises UsageError where they contradict each other."""
    from russet.bench.ttft_plan import Plan

    documents = [name for name in prefills if name.startswith("superposition")]
    if documents:
        raise click.UsageError(
            f"{documents[0]} needs documents, which running text does not have; time it with `russet bench prefill`."
        )
    files = [Path(name) for name in gguf or models if gguf or name.endswith(".gguf")]
    if LLAMA_CPP in peers and len(files) != len(models):
        raise click.UsageError(f"--peer {LLAMA_CPP} needs each model as a GGUF file: name them with --gguf.")
    if gguf and LLAMA_CPP not in peers:
        raise click.UsageError(f"--gguf belongs to --peer {LLAMA_CPP}.")
    missing = [file for file in files if not file.is_file()]
    if LLAMA_CPP in peers and missing:
        raise BenchmarkDataError(f"{missing[0]} is no file; name a GGUF file.")
    chosen = ("prompt_lengths", "generate", "repeat", "delay", "cold", "dtype", "draft")
    return Plan(
        models=models,
        prefills=prefills,
        peers=tuple(dict.fromkeys(peers)),
        gguf=tuple(files) if LLAMA_CPP in peers else (),
        prompt_file=Path(prompt_file).name if prompt_file else None,
        text=_read_text(Path(prompt_file)) if prompt_file else None,
        **{name: options[name] for name in chosen},
    )


def _read_text(file: Path) -> str:
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise PromptEncodingError(f"{file} is not UTF-8 text (byte {error.start}); name a text file.") from error
    if not text.strip():
        raise BenchmarkDataError(f"{file} is empty; name a text to make prompts of.")
    return text


def _measure(plan: Plan, scores: list[TaskScores], options: dict[str, Any]) -> None:
    """Look at everything first, then load, measure and publish."""
    from russet.bench.ttft import fill, new_report
    from russet.bench.ttft_plan import prepare, steps
    from russet.engine.cli.console import terminal_progress
    from russet.models.download import resolve

    with terminal_progress() as progress:
        jobs = prepare(plan, lambda name: resolve(name, progress=progress))
    report = new_report(plan)
    fill_and_publish(
        report,
        lambda listen: fill(report, plan, jobs, lambda name: load_model(name, plan.dtype, None), listen),
        lambda: _publish(report, scores, options),
        steps(plan, jobs),
    )


def _publish(report: TtftReport, scores: list[TaskScores], options: dict[str, Any]) -> None:
    """Every output that was asked for."""
    from russet.bench import ttft_plots, ttft_tables
    from russet.bench.ttft_csv import write_csv

    json_file, csv_file, plot = options["json_file"], options["csv_file"], options["plot"]
    if json_file is not None:
        # Hundreds of token times: one line a value would be many times as long.
        write_json(report.to_dict(), json_file, indent=None)
    if csv_file is not None:
        with click.open_file(csv_file, "w", encoding="utf-8") as file:
            write_csv(report, file)  # pyright: ignore[reportArgumentType]
    if json_file != "-":
        ttft_tables.show(report, terminal=sys.stdout.isatty() and not options["markdown"])
    if plot is not None and report.finished:
        for file in ttft_plots.draw_all(report, Path(plot), scores):
            click.echo(f"Drew {file}.", err=True)
