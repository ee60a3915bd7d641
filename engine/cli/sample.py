"""`russet sample`: text out of a model itself, as the token ids that recipes train on."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from russet.engine.cli.recipe import Tokens
from russet.engine.cli.training import EVERY_S
from russet.engine.timing import now


@click.command()
@click.argument("src")
@click.argument("dst", type=click.Path(path_type=Path))
@click.option("--tokens", type=Tokens(), required=True, help="How many tokens to write, as in 8M.")
@click.option("--batch", type=click.IntRange(1), default=64, show_default=True, help="Rows sampled at once.")
@click.option("--length", type=click.IntRange(16), default=1024, show_default=True, help="Tokens a row.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Decides every random choice.")
@click.option("--chat", type=click.FloatRange(0, 1), default=0.5, show_default=True, help="Share of chats.")
@click.option("--lookup", type=click.FloatRange(0, 1), default=0.0, show_default=True, help="Share of lookup text.")
@click.option(
    "--passages", type=click.Path(path_type=Path), help="Text or token ids that lookup text is made of, as for recipes."
)
@click.option(
    "--temp",
    "temperature",
    type=click.FloatRange(0, min_open=True),
    default=1.0,
    show_default=True,
    help="Sampling temperature.",
)
@click.option(
    "--min-p",
    type=click.FloatRange(0, 1),
    default=0.01,
    show_default=True,
    help="Drop tokens less likely than this share of the likeliest.",
)
@click.option("--system", "systems", multiple=True, help="System prompt of a share of the chats; may be repeated.")
@click.option("--seconds", type=click.FloatRange(0, min_open=True), help="Write what there is after so many seconds.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object.")
def command(src: str, dst: Path, passages: Path | None, as_json: bool, **given: Any) -> None:
    """Write text for recipes into the new folder DST: what the model SRC itself says.

    Plain text goes on from a random word, and chats from the beginning of the user's turn, so that the model asks and
    answers. Rows are cut where they begin to go round in circles. Lookup text is put together from --passages: what is
    asked for in it stands in it before. docs/recipes.md has what each kind is for.
    """
    from russet.converters.texts.sample import SampleReport, SampleSettings, sample_text
    from russet.models.download import resolve

    settings = SampleSettings(**{name: value for name, value in given.items() if value is not None})
    with _shown(settings.tokens) as advance:
        report: SampleReport = sample_text(Path(resolve(src)), dst, settings, passages, advance)
    if as_json:
        click.echo(json.dumps(asdict(report)))
        return
    parts = ", ".join(f"{count:,} of {kind}" for kind, count in report.tokens.items())
    speed = f" at {report.tokens_per_second:,.0f} tokens/s" if report.rows else ""
    circles = f"of {report.rows} sampled rows {report.cut} were cut and {report.dropped} left out"
    click.echo(f"Wrote {dst}: tokens: {parts}; {circles}{speed}.")


@contextmanager
def _shown(tokens: int) -> Iterator[Callable[[int], None]]:
    """How far it is, on standard error: a bar on a terminal, otherwise a line each quarter of a minute."""
    if sys.stderr.isatty():
        with click.progressbar(length=tokens, label="Tokens", file=sys.stderr) as bar:
            yield bar.update
        return
    begun = said = now()
    done = 0

    def advance(count: int) -> None:
        nonlocal said, done
        done += count
        if now() - said >= EVERY_S:
            said = now()
            click.echo(f"russet: {done:,} tokens, {done / (said - begun):,.0f} tokens/s", err=True)

    yield advance
