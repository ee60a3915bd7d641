"""The part of `russet convert` that writes packages for other runtimes (`--to`): its options and what it prints."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from russet.converters.exporting import CHUNK, CONTEXT, LAYOUTS, TARGETS, WEIGHTS
from russet.engine.cli.conversion import show_conversion

if TYPE_CHECKING:
    from russet.converters.exporting import ExportReport

EXPORT_OPTIONS = (
    click.option(
        "--to",
        type=click.Choice(["mlx", *TARGETS]),
        default="mlx",
        show_default=True,
        help="The runtime to convert for: Russet's own on MLX, or a package for Apple's.",
    ),
    click.option(
        "--weights",
        type=click.Choice(WEIGHTS),
        help="Packages: how matrices are stored.  [default: float16; as stored for balanced 2-bit weights]",
    ),
    click.option(
        "--layout",
        type=click.Choice(LAYOUTS),
        help="Packages: what Russet calls, or what Swift clients do: Hugging Face's for Core ML, Apple's for Core AI.  "
        "[default: engine]",
    ),
    click.option(
        "--context",
        type=click.IntRange(min=1),
        metavar="N",
        help=f"Packages: positions that the state holds.  [default: the model's, for Core ML at most {CONTEXT}]",
    ),
    click.option(
        "--chunk",
        type=click.IntRange(min=1),
        metavar="N",
        help=f"Packages: tokens that prefill takes at once.  [default: {CHUNK}, for Core AI {4 * CHUNK}]",
    ),
    click.option(
        "--system",
        metavar="NAME",
        help="Packages: the oldest system that they are for, as in ios18 or macos15; its equal is meant as well.",
    ),
)

EXPORT_SETTINGS = ("weights", "layout", "context", "chunk", "system")


def refuse_mixed(to: str, given: dict[str, Any]) -> None:
    """Raises click.UsageError for an option of the other kind of conversion; `given` has all of them, by name."""
    of_packages = {name: given[name] for name in EXPORT_SETTINGS}
    others = {name: value for name, value in given.items() if name not in EXPORT_SETTINGS}
    wrong = [name for name, value in (of_packages if to == "mlx" else others).items() if value not in (None, ())]
    if wrong:
        option = "--" + wrong[0].replace("_", "-")
        instead = "give --to coreml as well" if to == "mlx" else "packages take --weights"
        raise click.UsageError(f"{option} does not apply to --to {to}: {instead}.")


def export_and_show(src: Path, dst: Path, to: str, settings: dict[str, Any], *, dry_run: bool, as_json: bool) -> None:
    """Write the package and print the report, as `russet convert` does for a folder."""
    from russet.converters.exporting import ExportOptions, export
    from russet.engine.cli.console import terminal_progress

    options = ExportOptions(**{name: value for name, value in settings.items() if value is not None})
    with terminal_progress() as progress:
        report = export(src, dst, to, options=options, dry_run=dry_run, progress=progress)
    values = {**asdict(report), "bits_per_weight": report.bits_per_weight}
    del values["lines"]
    show_conversion(values, report.notes, _table(report) if dry_run else "", _summary(report), as_json=as_json)


def _table(report: ExportReport) -> str:
    width = max(len(name) for name, *_ in report.lines)
    kinds = max(len(kind) for _, kind, *_ in report.lines)
    return "\n".join(
        f"{name:<{width}}  {kind:<{kinds}} {count:>5} tensors {nbytes:>15,} bytes"
        for name, kind, count, nbytes in report.lines
    )


def _summary(report: ExportReport) -> str:
    from russet.engine.storage import readable_bytes

    count = len(report.packages)
    packages = f" in {count} packages" if count > 1 else ""
    return (
        f"{'Would write' if report.dry_run else 'Wrote'} {report.dst}: {report.family} for {report.target}, "
        f"{report.layout} layout, context {report.context:,}, {report.weights} weights, "
        f"{readable_bytes(report.bytes_out)}{packages}, {report.bits_per_weight:.2f} bits a weight."
    )
