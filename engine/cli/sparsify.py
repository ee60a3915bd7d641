"""`russet sparsify`: a model folder in, one whose FFNs leave neurons out."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from russet.engine.errors import InvalidOptionError


@click.command()
@click.argument("src")
@click.argument("dst", type=click.Path(path_type=Path))
@click.option(
    "--sparsity",
    type=float,
    metavar="S",
    help="Cut this share of activations, from 0 to 1, by a threshold a layer. Lossy; ReLU models need none.",
)
@click.option("--text", "text_file", type=click.Path(path_type=Path), help="File of running text to calibrate on.")
@click.option(
    "--tokens", type=click.IntRange(min=32), default=4096, show_default=True, help="Tokens of it that are run."
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object.")
def command(src: str, dst: Path, sparsity: float | None, text_file: Path | None, tokens: int, as_json: bool) -> None:
    """Write the model folder DST from the model SRC, for FFNs that leave neurons out when decoding.

    SRC is a model folder or a name of the catalog. Quantised down projections are stored by neuron, which rounds them
    once more; a model that has ReLU needs no more. With --sparsity and --text, DST gets a threshold a layer under which
    activations count as zero.
    """
    from russet.converters.sparsify import sparsify
    from russet.engine.cli.console import terminal_progress
    from russet.models.download import resolve

    if (sparsity is None) != (text_file is None):
        raise click.UsageError("--sparsity and --text go together.")
    with terminal_progress() as progress:
        folder = resolve(src, progress=progress)
    report = sparsify(folder, dst, sparsity=sparsity, text=_read(text_file) if text_file else "", tokens=tokens)
    if as_json:
        click.echo(json.dumps({**asdict(report), "dst": str(report.dst)}))
        return
    done = []
    if report.thresholds:
        done.append(f"thresholds from {min(report.thresholds):.3g} to {max(report.thresholds):.3g}")
    if report.turned:
        done.append(f"{report.turned} down projections by neuron, relative error {report.error:.2%}")
    click.echo(f"Wrote {report.dst}: {'; '.join(done) or 'nothing had to change'}.")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InvalidOptionError(f"{path} could not be read ({error.strerror}).") from error
    except UnicodeDecodeError:
        raise InvalidOptionError(f"{path} is not UTF-8 text: give a text file.") from None
