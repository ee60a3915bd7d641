"""The options that choose a prefill strategy, and what a command says about the one that ran."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from russet.engine.cli.options import with_options
from russet.engine.errors import InvalidOptionError
from russet.engine.paths import documents_dir
from russet.engine.prefill.strategies import STRATEGIES, find, parse

if TYPE_CHECKING:
    from russet.engine.prefill.base import Prefill

SETTINGS = ("keep", "draft", "predictor")

CHAT_STRATEGIES = [name for name in STRATEGIES if name != "superposition"]
"""A conversation has no documents set apart from the rest."""


def prefill_options(names: list[str]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add `prefill`, one of `names`, its settings `keep`, `draft` and `predictor`, and `prefix_cache`."""
    counts = ", or number of documents for superposition" if "superposition" in names else ""
    options = (
        click.option(
            "--prefill",
            type=click.Choice(names),
            default="exact",
            show_default=True,
            help="How the prompt is computed; all but exact are approximate.",
        ),
        click.option("--keep", type=float, metavar="K", help=f"Share of the prompt that is kept{counts}."),
        click.option("--draft", metavar="MODEL", help="For specprefill: a model, or a share of the layers as in 0.5."),
        click.option("--predictor", metavar="NAME", help="For kv-prediction: a predictor's name or folder."),
        click.option(
            "--prefix-cache/--no-prefix-cache",
            default=False,
            help="Keep long prompts, or the documents of superposition, on disk for the next time.  [default: off]",
        ),
    )
    return lambda function: with_options(function, options)


def chosen_prefill(name: str, settings: dict[str, Any], prefix_cache: bool) -> Prefill | None:
    """The strategy that the options describe, or None for exact prefill; superposition's documents are cached as well.

    Raises click.UsageError for settings that do not fit, before a model is loaded.
    """
    strategy = find(name)
    given = {key: value for key, value in settings.items() if value is not None}
    for key in given:
        if key not in strategy.settings:
            takers = [f"--prefill {other}" for other, entry in STRATEGIES.items() if key in entry.settings]
            raise click.UsageError(f"--{key} goes with {' or '.join(takers)}, not with {name}.")
    if name == "kv-prediction" and "predictor" not in given:
        raise click.UsageError("--prefill kv-prediction needs --predictor NAME, a listed one or a folder.")
    if name == "exact":
        return None
    if prefix_cache and "documents" not in strategy.settings:
        raise click.UsageError(f"--prefix-cache keeps nothing of {name} prefill, which is approximate: leave it out.")
    try:
        return parse(name, **given, documents=documents_dir() if prefix_cache else None)
    except InvalidOptionError as error:
        raise click.UsageError(str(error)) from error


def show_price(name: str) -> None:
    """On a terminal, say once that a lossy strategy was chosen, and what that means."""
    price = find(name).price
    if price and sys.stderr.isatty():
        from russet.engine.cli.console import aside

        aside(f"{name} prefill is approximate: {price}. docs/prefill.md has what that costs.")


def show_note(note: str) -> None:
    """Say why a strategy did not apply, if it did not."""
    if note:
        logging.getLogger("russet").warning("%s", note)
