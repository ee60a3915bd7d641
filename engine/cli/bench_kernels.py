"""`russet bench kernels`: time Russet's kernels on a GPU beside MLX's own operations."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from russet.engine.cli.bench_output import check_writable, fill_and_publish, json_option, write_json

if TYPE_CHECKING:
    from russet.bench.kernels import KernelReport


@click.command()
@click.option("--only", metavar="NAME", multiple=True, help="Time the cases with NAME in their names; repeatable.")
@json_option("every measured value")
def kernels(only: tuple[str, ...], json_file: str | None) -> None:
    """Time kernels on a GPU beside MLX's own operations, taking turns.

    Calls with weights of their own are evaluated together, so a time is one at full load. Bytes a second stand beside
    those of a copy. docs/benchmarks.md lists the cases. Ctrl-C shows what was finished and exits with 130.
    """
    check_writable(json_file)
    from russet.bench.kernels import chosen_cases, fill, new_report

    cases = chosen_cases(only)
    report = new_report()
    fill_and_publish(report, lambda listen: fill(report, cases, listen), lambda: _publish(report, json_file))


def _publish(report: KernelReport, json_file: str | None) -> None:
    from russet.bench.drawing import show
    from russet.bench.kernels import notes, table

    if json_file != "-":
        show([table(report)], notes(report), terminal=sys.stdout.isatty())
    if json_file is not None:
        write_json(report.to_dict(), json_file)
