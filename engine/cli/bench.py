"""`russet bench`: measurements, one sub-command each."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from russet.bench.peers import IN_PROCESS, require_peer
from russet.engine.cli.bench_compare import compare
from russet.engine.cli.bench_kernels import kernels
from russet.engine.cli.bench_options import dtype_option, generate_option, peer_option, repeat_option
from russet.engine.cli.bench_output import check_writable, fill_and_publish, json_option, write_json
from russet.engine.cli.bench_placement import placement
from russet.engine.cli.bench_prefill import prefill
from russet.engine.cli.bench_quality import quality
from russet.engine.cli.bench_roofline import roofline
from russet.engine.cli.bench_shape import chosen_bits, random_model, shape_options
from russet.engine.cli.bench_ttft import ttft
from russet.engine.cli.lengths import Lengths
from russet.engine.cli.options import DEFAULT_MODEL, load_model

if TYPE_CHECKING:
    from russet.bench.report import Report


@click.group()
def command() -> None:
    """Measure speed on this machine, beside other engines, and quality."""


@command.command()
@click.option("-m", "--model", help=f"Catalog name, folder, or repository.  [default: {DEFAULT_MODEL}]")
@shape_options
@peer_option(IN_PROCESS)
@click.option(
    "--package",
    "packages",
    multiple=True,
    metavar="PATH[@UNITS]",
    help="Time this exported package of the model as well; UNITS are all, cpu, cpu-gpu or cpu-ne.",
)
@click.option("--prompt-lengths", type=Lengths(), default="512,2048", show_default=True, help="Tokens of the prompts.")
@generate_option()
@repeat_option()
@click.option(
    "--as-installed/--no-as-installed",
    default=True,
    help="On a Linux CPU, mlx-lm with MLX's own BLAS beside the rest, which is slow.  [default: on]",
)
@dtype_option()
@json_option("every measured value")
def decode(model: str | None, json_file: str | None, **settings: Any) -> None:
    """Time engines from token ids to token ids, and count what a step of decoding costs.

    For work on an engine: for what a user waits for, see `russet bench ttft`. Engines alternate in one process.
    Prompts are real text of exactly the lengths asked for; with --shape they and the weights are random. Decoding is
    greedy and goes on past the end of the reply. Ratios above 1 say that Russet is faster. docs/benchmarks.md defines
    every number. Ctrl-C shows what was finished and exits with 130.
    """
    _check_shape(model, settings)
    settings["peers"] = tuple(dict.fromkeys(settings["peers"]))
    for peer in settings["peers"]:
        require_peer(peer)
    _check_packages(settings["packages"])
    check_writable(json_file)
    _measure(model, settings, json_file)


def _check_packages(packages: tuple[str, ...]) -> None:
    """Refuse what is no package before anything is loaded."""
    if packages:
        from russet.bench.packages import PackageChoice

        for package in packages:
            PackageChoice.parse(package)


def _check_shape(model: str | None, settings: dict[str, Any]) -> None:
    """Refuse options that contradict each other, and make a number of --bits."""
    if settings["shape"] and model:
        raise click.UsageError("--shape is a model in memory; leave out --model.")
    settings["bits"] = chosen_bits(settings["shape"], settings["bits"])


def _measure(model: str | None, settings: dict[str, Any], json_file: str | None) -> None:
    """Load, measure and publish."""
    import mlx.core as mx

    from russet.bench.benchmark import Plan, fill, new_report
    from russet.bench.packages import weights_of

    plan = Plan(**settings)
    before = mx.get_active_memory()
    if plan.shape and plan.bits:
        loaded = random_model(plan.shape, plan.bits, plan.dtype)
    else:
        loaded = load_model(model or DEFAULT_MODEL, plan.dtype, None)
    mx.clear_cache()
    weights_bytes = weights_of(loaded) or mx.get_active_memory() - before
    report = new_report(loaded, plan)
    fill_and_publish(
        report, lambda listen: fill(report, loaded, weights_bytes, plan, listen), lambda: _publish(report, json_file)
    )


def _publish(report: Report, json_file: str | None) -> None:
    from russet.bench.tables import show

    if json_file != "-":
        show(report, terminal=sys.stdout.isatty())
    if json_file is not None:
        write_json(report.to_dict(), json_file)


command.add_command(ttft)
command.add_command(compare)
command.add_command(kernels)
command.add_command(placement)
command.add_command(prefill)
command.add_command(quality)
command.add_command(roofline)
