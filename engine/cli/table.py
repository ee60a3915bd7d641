"""Rows on standard output: a table on a terminal, and lines of tab-separated fields for other programs."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

import click


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print `rows` under `header`; an empty header prints none."""
    if not sys.stdout.isatty():
        for row in rows:
            click.echo("\t".join(row))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*header, show_header=bool(header), box=None, padding=(0, 2, 0, 0))
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)
