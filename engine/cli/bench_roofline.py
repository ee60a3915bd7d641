"""`russet bench roofline`: what a model would reach on Apple's parts, predicted and not measured."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from russet.engine.cli.bench_output import check_writable, json_option, write_json
from russet.engine.cli.bench_shape import chosen_bits, shape_options
from russet.engine.cli.lengths import Lengths
from russet.engine.cli.options import DEFAULT_MODEL

if TYPE_CHECKING:
    from russet.bench.roofline import Workload


@click.command()
@click.option("-m", "--model", help=f"Catalog name, folder, or repository.  [default: {DEFAULT_MODEL}]")
@shape_options
@click.option("--contexts", type=Lengths(), default="512,4096", show_default=True, help="Tokens in the cache.")
@click.option("--check", is_flag=True, help="Hold the model against published figures instead.")
@click.option("--overview", is_flag=True, help="Show three well-known models on one page instead.")
@json_option("the predictions")
def roofline(
    model: str | None,
    shape: str | None,
    bits: str | None,
    contexts: tuple[int, ...],
    check: bool,
    overview: bool,
    json_file: str | None,
) -> None:
    """Predict decoding and time to first token on Apple's M1 to M5 parts.

    The figures follow from bytes, arithmetic and launches; nothing is measured, and no weights are loaded.
    docs/benchmarks.md has the model, its constants' sources, and its error on published figures.
    """
    if sum(map(bool, (model, shape, check, overview))) > 1:
        raise click.UsageError(
            "--model, --shape, --check and --overview name different things to show; leave all but one out."
        )
    number = chosen_bits(shape, bits)
    check_writable(json_file)
    from russet.bench import drawing
    from russet.bench.roofline import notes, predictions, shape_workload, table, to_dict

    if check or overview:
        from russet.bench import roofline_check, roofline_overview

        shown = roofline_check.table() if check else roofline_overview.table()
        drawing.show([shown], [], terminal=sys.stdout.isatty())
        return
    work = shape_workload(shape, number) if shape and number else _of_folder(model or DEFAULT_MODEL)
    found = predictions(work, contexts)
    if json_file != "-":
        drawing.show([table(work, found)], notes(work), terminal=sys.stdout.isatty())
    if json_file is not None:
        write_json(to_dict(work, found), json_file)


def _of_folder(model: str) -> Workload:
    from russet.bench.roofline import folder_workload
    from russet.engine.cli.console import terminal_progress
    from russet.models.download import resolve

    with terminal_progress() as progress:
        return folder_workload(model, resolve(model, progress=progress))
