"""`russet bench compare`: what changed between two results of `russet bench ttft`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from russet.engine.cli.bench_output import check_writable, json_option, write_json


@click.command()
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option("--across-machines", is_flag=True, help="Compare results of different machines as well.")
@json_option("the comparisons")
def compare(a: Path, b: Path, across_machines: bool, json_file: str | None) -> None:
    """Compare two files of `russet bench ttft --json`, and say which differences are more than chance.

    Models, prompt lengths and contenders that both files have are compared. Above 1x B is better. Fewer than 4 runs on
    a side cannot show a difference.
    """
    check_writable(json_file)
    from russet.bench import compare as comparison
    from russet.bench import drawing
    from russet.bench.report_file import whole_reports
    from russet.bench.ttft_report import read_report

    with whole_reports(a, b):
        first, second = read_report(a), read_report(b)
        if not across_machines:
            comparison.check_machines(first, second)
        found = comparison.compare_reports(first, second)
        lines, raw = comparison.notes(first, second, found), comparison.to_dict(first, second, found)
        table = comparison.table(found)
    if json_file != "-":
        drawing.show([table], lines, terminal=sys.stdout.isatty())
    if json_file is not None:
        write_json(raw, json_file)
