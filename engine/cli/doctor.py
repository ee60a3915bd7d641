"""`russet doctor`: what Russet runs on, and whether that works."""

from __future__ import annotations

import json

import click

from russet.engine.cli.table import print_table


@click.command("doctor", short_help="Show what Russet runs on, and what is broken.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> None:
    """Show the versions, the device, the BLAS that serves and its speed, the kernels, the cache, and what is broken.

    On a GPU every kernel is checked and timed beside MLX, which takes a minute where kernels were not compiled before.
    Exits with 1 if something that Russet cannot do without is broken.
    """
    from russet.engine.diagnosis import diagnose

    findings = diagnose()
    problems = [finding.problem for finding in findings if finding.problem]
    if as_json:
        report = {finding.key: finding.value for finding in findings} | {"problems": problems}
        click.echo(json.dumps(report, indent=2))
    else:
        print_table((), [(finding.key, finding.text) for finding in findings])
        for header, *rows in (finding.table for finding in findings if finding.table):
            click.echo()
            print_table(header, rows)
        for problem in problems:
            click.echo(f"russet: {problem}", err=True)
    if problems:
        ctx.exit(1)
